"""A second implementation of gRPC's client side, Python's grpcio, understands the server as the C++ one does."""

import re
import signal
import unittest
import urllib.request

from serving import SMALL, Client, Server, Stubs, main, wait_until

try:
    import grpc
except ImportError:
    grpc = None

SERVICES = ("", "marcoro.v1.InferenceService", "marcoro.v1.ModelService")
TIMEOUT_SECONDS = 60


def details_of(error, stubs):
    """The google.rpc.Status that came with an error."""
    values = [value for key, value in error.trailing_metadata() if key == "grpc-status-details-bin"]
    return stubs.status.Status.FromString(values[0])


def detail_of(error, stubs, kind):
    """The one detail of this kind."""
    message = getattr(stubs.error_details, kind)()
    found = [detail for detail in details_of(error, stubs).details if detail.Is(message.DESCRIPTOR)]
    assert len(found) == 1, f"{len(found)} of {kind}"
    found[0].Unpack(message)
    return message


class PythonTest(unittest.TestCase):
    flags = ("--tp", "2")

    @classmethod
    def setUpClass(cls):
        if grpc is None:
            raise unittest.SkipTest("Python's grpcio is not installed; deploy/install.sh --dev installs it")
        cls.stubs = Stubs()
        cls.api = cls.stubs.inference
        cls.server = Server(SMALL, *cls.flags)
        cls.addClassCleanup(cls.server.stop)
        cls.client = Client(cls.server.address, cls.stubs)
        cls.addClassCleanup(cls.client.close)

    def request(self, **fields):
        """A reproducible request of exactly max_tokens tokens."""
        return self.api.GenerateRequest(**{"prompt": "Return the", "max_tokens": 24, "seed": 7, "ignore_eos": True, **fields})

    def endless(self):
        """Goes on for seconds."""
        return self.request(max_tokens=4000, n=8)

    def refused(self, call, request):
        with self.assertRaises(grpc.RpcError) as raised:
            call(request, timeout=TIMEOUT_SECONDS)
        return raised.exception

    def worker_metric(self, series):
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(self.server.worker_metrics, timeout=TIMEOUT_SECONDS) as answer:
            return float(re.search(rf"(?m)^{re.escape(series)} (\S+)$", answer.read().decode())[1])

    def await_metric(self, series, value):
        wait_until(lambda: self.worker_metric(series) == value, lambda: f"{series} is {self.worker_metric(series)}, not {value}")


class Calls(PythonTest):
    def test_generate(self):
        response = self.client.generate(self.request(n=2, logprobs=3), timeout=TIMEOUT_SECONDS)
        self.assertEqual([choice.index for choice in response.choices], [0, 1])
        for choice in response.choices:
            self.assertEqual(len(choice.token_ids), 24)
            self.assertEqual([entry.token_id for entry in choice.logprobs], list(choice.token_ids))
            self.assertTrue(all(len(entry.top) == 3 and entry.logprob <= 0 for entry in choice.logprobs))
            self.assertEqual(choice.finish_reason, self.api.FINISH_REASON_LENGTH)
        self.assertEqual((response.model, response.seed, response.usage.generated_tokens), ("small", 7, 48))

    def test_a_stream_is_the_unary_answer_in_pieces(self):
        whole = self.client.generate(self.request(logprobs=1), timeout=TIMEOUT_SECONDS).choices[0]
        pieces = list(self.client.generate_stream(self.request(logprobs=1), timeout=TIMEOUT_SECONDS))
        choices = [choice for piece in pieces for choice in piece.choices]
        self.assertGreater(len(pieces), 1)
        self.assertEqual("".join(choice.text for choice in choices), whole.text)
        self.assertEqual([token for choice in choices for token in choice.token_ids], list(whole.token_ids))
        self.assertEqual([entry for choice in choices for entry in choice.logprobs], list(whole.logprobs))
        self.assertEqual([choice.finish_reason for choice in choices if choice.finish_reason], [self.api.FINISH_REASON_LENGTH])
        self.assertEqual((pieces[-1].usage.generated_tokens, pieces[-1].seed), (24, 7))

    def test_score_tokenize_and_detokenize_agree(self):
        text = "The quick brown fox"
        tokens = self.client.tokenize(self.api.TokenizeRequest(prompt=text), timeout=TIMEOUT_SECONDS)
        scores = self.client.score(self.api.ScoreRequest(prompt=text, top=2), timeout=TIMEOUT_SECONDS)
        self.assertEqual([entry.token_id for entry in scores.tokens], list(tokens.token_ids))
        self.assertFalse(scores.tokens[0].HasField("logprob"))  # nothing predicts the first
        self.assertTrue(all(entry.logprob < 0 and len(entry.top) == 2 for entry in scores.tokens[1:]))
        again = self.client.detokenize(self.api.DetokenizeRequest(token_ids=tokens.token_ids), timeout=TIMEOUT_SECONDS)
        self.assertEqual(again.text, text)

    def test_models(self):
        models = self.client.list_models(self.stubs.model.ListModelsRequest(), timeout=TIMEOUT_SECONDS).models
        model = self.client.get_model(self.stubs.model.GetModelRequest(name="small"), timeout=TIMEOUT_SECONDS).model
        self.assertEqual(list(models), [model])
        self.assertEqual((model.name, model.architecture, model.tensor_parallel), ("small", "MistralForCausalLM", 2))
        self.assertEqual(model.state, self.stubs.model.MODEL_STATE_WARM)

    def test_sixteen_calls_in_flight_on_one_channel(self):
        calls = [self.client.generate.future(self.request(seed=seed), timeout=TIMEOUT_SECONDS) for seed in range(16)]
        self.assertEqual([call.result().seed for call in calls], list(range(16)))


class Errors(PythonTest):
    flags = ("--max-requests", "1")

    def test_a_bad_field_is_named(self):
        for call in (self.client.generate, lambda *given, **options: list(self.client.generate_stream(*given, **options))):
            error = self.refused(call, self.request(temperature=-1))
            self.assertEqual(error.code(), grpc.StatusCode.INVALID_ARGUMENT)
            status = details_of(error, self.stubs)
            self.assertEqual((status.code, status.message), (grpc.StatusCode.INVALID_ARGUMENT.value[0], error.details()))
            violations = detail_of(error, self.stubs, "BadRequest").field_violations
            self.assertEqual([violation.field for violation in violations], ["temperature"])
            info = detail_of(error, self.stubs, "ErrorInfo")
            self.assertEqual((info.domain, info.reason), ("marcoro", "INVALID_FIELD"))

    def test_an_unknown_model_is_not_found(self):
        error = self.refused(self.client.get_model, self.stubs.model.GetModelRequest(name="nobody"))
        self.assertEqual(error.code(), grpc.StatusCode.NOT_FOUND)
        self.assertEqual(detail_of(error, self.stubs, "ErrorInfo").domain, "marcoro")

    def test_a_full_server_says_when_to_come_back(self):
        stream = self.client.generate_stream(self.endless(), timeout=TIMEOUT_SECONDS)
        next(stream)
        error = self.refused(self.client.generate, self.request())
        stream.cancel()
        self.assertEqual(error.code(), grpc.StatusCode.RESOURCE_EXHAUSTED)
        delay = detail_of(error, self.stubs, "RetryInfo").retry_delay
        self.assertGreater(delay.ToTimedelta().total_seconds(), 0)
        pushback = dict(error.trailing_metadata())["grpc-retry-pushback-ms"]
        self.assertEqual(int(pushback), delay.ToMilliseconds())
        # The first has left its place once it has freed its sequences.
        self.await_metric("marcoro_worker_sequences_running", 0)
        wait_until(self.answers, lambda: "the server stays full")

    def answers(self):
        try:
            return len(self.client.generate(self.request(), timeout=TIMEOUT_SECONDS).choices) == 1
        except grpc.RpcError as error:
            self.assertEqual(error.code(), grpc.StatusCode.RESOURCE_EXHAUSTED)
            return False


class Cancellation(PythonTest):
    def test_a_cancelled_stream_frees_its_sequences(self):
        before = self.worker_metric('marcoro_worker_sequences_finished_total{reason="cancelled"}')
        stream = self.client.generate_stream(self.endless(), timeout=TIMEOUT_SECONDS)
        next(stream)
        stream.cancel()
        with self.assertRaises(grpc.RpcError):
            for _ in stream:
                pass
        self.assertEqual(stream.code(), grpc.StatusCode.CANCELLED)
        self.await_metric('marcoro_worker_sequences_finished_total{reason="cancelled"}', before + 8)
        self.await_metric("marcoro_worker_sequences_running", 0)

    def test_a_cancelled_call_frees_its_sequences(self):
        call = self.client.generate.future(self.endless(), timeout=TIMEOUT_SECONDS)
        self.await_metric("marcoro_worker_sequences_running", 8)
        self.assertTrue(call.cancel())
        self.await_metric("marcoro_worker_sequences_running", 0)

    def test_a_deadline_ends_the_call_and_frees_its_sequences(self):
        with self.assertRaises(grpc.RpcError) as raised:
            self.client.generate(self.endless(), timeout=0.1)
        self.assertEqual(raised.exception.code(), grpc.StatusCode.DEADLINE_EXCEEDED)
        self.await_metric("marcoro_worker_sequences_running", 0)
        self.assertEqual(len(self.client.generate(self.request(), timeout=TIMEOUT_SECONDS).choices[0].token_ids), 24)


class Health(PythonTest):
    def check(self, service):
        request = self.stubs.health.HealthCheckRequest(service=service)
        return self.client.check(request, timeout=TIMEOUT_SECONDS).status

    def test_every_service_is_serving(self):
        for service in SERVICES:
            with self.subTest(service=service):
                self.assertEqual(self.check(service), self.stubs.health.HealthCheckResponse.SERVING)

    def test_an_unknown_service_is_not_found(self):
        with self.assertRaises(grpc.RpcError) as raised:
            self.check("no.such.Service")
        self.assertEqual(raised.exception.code(), grpc.StatusCode.NOT_FOUND)

    def test_a_watcher_is_told_of_the_drain(self):
        server = Server(SMALL)
        self.addCleanup(server.stop)
        client = Client(server.address, self.stubs)
        self.addCleanup(client.close)
        watch = client.watch(self.stubs.health.HealthCheckRequest(service=SERVICES[1]), timeout=TIMEOUT_SECONDS)
        running = client.generate_stream(self.endless(), timeout=TIMEOUT_SECONDS)
        next(running)
        self.assertEqual(next(watch).status, self.stubs.health.HealthCheckResponse.SERVING)
        server.process.send_signal(signal.SIGTERM)
        self.assertEqual(next(watch).status, self.stubs.health.HealthCheckResponse.NOT_SERVING)
        running.cancel()


if __name__ == "__main__":
    main()
