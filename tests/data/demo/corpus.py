"""The synthetic English of the demo pair: short stories, and short texts with questions about them.

Everything is made from the lists and patterns of this file. In a pattern, [a|b] stands for one of
its alternatives, drawn anew each time, and {name} for a word of the story's cast.
"""

import re

GIRLS = "Anna Emma Lily Clara Nora Rosa Julia Ella Mary Sara".split()
BOYS = "Tom Ben Leo Max Paul Jack Sam Peter Oscar Hugo".split()
PEOPLE = GIRLS + BOYS
ANIMALS = "dog cat rabbit horse fox bear duck goat owl mouse sheep turtle donkey pig".split()
BIG_ANIMALS = "bear horse wolf deer donkey bull".split()
SMALL_ANIMALS = "kitten puppy bird rabbit duck hedgehog squirrel mouse turtle owl".split()
ANIMAL_NAMES = "Pip Momo Bruno Luna Coco Rusty Daisy Nibbles".split()
OBJECTS = (
    "lamp key book map ball basket bell box coin kite hat scarf drum letter ring clock cup spoon"
    " rope flute".split()
)
TREASURES = "ring|clock|flute|bell|coin|scarf|hat|book|key|lamp".split("|")
PLACES = (
    "forest village river market garden lake hill farm beach mill school library kitchen barn"
    " castle harbor bridge station church park".split()
)
WILD_PLACES = "forest river lake hill beach meadow".split()
COLORS = "red blue green yellow white black brown golden".split()
FOODS = "bread soup cheese apples honey cake rice nuts pears fish".split()
JOBS = "baker farmer teacher miller painter doctor sailor tailor gardener cook".split()
FAMILY = "mother father grandmother grandfather aunt uncle".split()
TRAITS = "kind brave clever quiet cheerful curious patient careful".split()

INNERMOST = re.compile(r"\[([^\[\]]*)\]")
ARTICLE = re.compile(r"\b([Aa]) (?=[aeiou])")


def expand(pattern, cast, random):
    """One text of a pattern."""
    return fill(choose(pattern, random), cast)


def choose(pattern, random):
    """One of the patterns without alternatives that a pattern stands for."""
    while "[" in pattern:
        pattern = INNERMOST.sub(lambda match: random.choice(match[1].split("|")), pattern)
    return pattern


def fill(pattern, cast):
    return ARTICLE.sub(r"\1n ", pattern.format_map(cast))


def pronouns(name, prefix=""):
    words = "she her her herself girl" if name in GIRLS else "he him his himself boy"
    keys = ["they", "them", "their", "self", "child"]
    cast = {prefix + key: word for key, word in zip(keys, words.split())}
    cast[prefix + "They"] = cast[prefix + "they"].capitalize()
    cast[prefix + "Their"] = cast[prefix + "their"].capitalize()
    return cast


def new_cast(random):
    hero, friend = random.sample(PEOPLE, 2)
    animal_name = random.choice(ANIMAL_NAMES)
    place, other_place, last_place = random.sample(PLACES, 3)
    family = random.choice(FAMILY)
    woman = family in ("mother", "grandmother", "aunt")
    return {
        "hero": hero,
        "friend": friend,
        "pet_name": animal_name,
        "animal": random.choice(ANIMALS),
        "beast": random.choice(BIG_ANIMALS),
        "pet": random.choice(SMALL_ANIMALS),
        "place": place,
        "other_place": other_place,
        "last_place": last_place,
        "wild": random.choice(WILD_PLACES),
        "object": random.choice(TREASURES),
        "color": random.choice(COLORS),
        "food": random.choice(FOODS),
        "job": random.choice(JOBS),
        "family": family,
        "fam_they": "she" if woman else "he",
        "fam_They": "She" if woman else "He",
        "trait": random.choice(TRAITS),
        **pronouns(hero),
        **pronouns(friend, "f_"),
    }


OPENINGS = [
    "Once upon a time, there was a [little |young |]{child} named {hero}. {They} lived [in a"
        " small house|in a little cottage|with {their} {family}] near the {place}.",
    "Once upon a time, a {trait} {child} named {hero} lived [near the {place}|in a small"
        " village|by the {place}].",
    "There was once a {child} called {hero}, who was very {trait}. {They} lived with {their}"
        " {family} near the {place}.",
    "{hero} was a {trait} {child} who [loved to play near the {place}|lived near the"
        " {place}|went to the {place} every day].",
    "[Long ago|Many years ago], a {trait} {child} named {hero} lived in a village by the {place}.",
]

ENDINGS = [
    "[From that day on|After that day], {hero} and {friend} were [the best of friends|good"
        " friends]. They [played|laughed] together every [day|week].",
    "That night, {hero} [slept very well|fell asleep with a smile]. It had been a"
        " [wonderful|long and happy] day.",
    "{hero} never forgot that day. {They} had learned that [a good friend is worth more than"
        " gold|it is good to help others|patience is a great gift|sharing makes everyone happy].",
    "In the evening, they all sat by the fire and ate [{food}|warm soup|sweet cake]. Everyone"
        " was [happy|glad and tired].",
    "And so {hero} went home with a [light|happy] heart.",
]

# Each plot: its sentences in order.
PLOTS = {
    "a lost {object}": [
        "[One day|One morning|One afternoon], {hero} lost the {color} {object} that {their}"
            " {family} had given {them}.",
        "{They} looked [under the bed|behind the door|in every room], but the {object} was not"
            " there.",
        '{hero} was very [sad|worried]. ["What shall I do?" {they} said.|{They} began to'
            ' cry.|"I must find it," {they} said.]',
        'Then {they} met {friend} at the {other_place}. "[Why are you so sad|What is wrong]?"'
            " asked {friend}.",
        '"I lost my {object}," said {hero}. "[Please help me find it|Will you help me]?"',
        "Together they [walked|went|ran] to the {last_place} and looked [everywhere|under every"
            " stone|behind every tree].",
        "At last {friend} saw something {color} [in the grass|under a tree|between two stones]."
            " It was the {object}!",
        '{hero} [hugged {f_them}|was so happy|jumped for joy]. "[Thank you, {friend}|You are a'
            ' true friend]!" {they} said.',
    ],
    "a hungry {pet}": [
        "[One day|One cold morning|One evening], {hero} [found|saw] a [little|small] {pet}"
            " [near the {wild}|by the {wild}]. It was [cold and hungry|all alone|hurt and tired].",
        '"[Do not be afraid|Poor little {pet}]," said {hero}. "[I will help you|I will take'
            ' care of you]."',
        "{They} [carried|took] the {pet} home and gave it [some {food}|some {food} and warm"
            " milk|water and {food}].",
        "{Their} {family} made a [soft|warm] bed for it in a [basket|box]. {hero} called the"
            " {pet} {pet_name}.",
        "[Every day|Each morning], {hero} [fed {pet_name}|played with {pet_name}|talked to"
            " {pet_name}], and [soon|after a week] the {pet} was strong again.",
        "[Then|One night] {hero} lost {their} way in the [dark|fog] near the {wild}. {They}"
            " [called for help|was very afraid], but nobody came.",
        "[Only|But] {pet_name} heard {them}. The {pet} [ran to|found] {hero} and showed {them}"
            " the way home.",
        '"[You saved me|Thank you], {pet_name}!" said {hero}. ["Now we are friends'
            ' forever."|"You are the best {pet} in the world."]',
    ],
    "a long walk to the {other_place}": [
        "{hero} had never seen the {other_place}. [One day|One morning|In the spring], {they}"
            ' said to {friend}, "[Let us go to the {other_place}|Come with me to the'
            ' {other_place}]!"',
        "They [packed|took] some {food} and a {object} and [left early|went off] in the morning.",
        "The road was long, and the sun was [hot|bright|high]. [They sang as they walked.|They"
            " rested under a big tree.]",
        'At the {last_place} the bridge was broken. "[How can we cross|What shall we do now]?"'
            " asked {friend}.",
        "{hero} [thought for a while|looked around]. Then {they} [built a small boat|found an"
            " old boat|put a long tree over the water].",
        "They crossed [slowly|carefully], and [nobody got wet|only {friend} got wet feet].",
        "[At last|In the evening] they came to the {other_place}. It was [more beautiful than a"
            " dream|big and bright and full of people|quiet and golden in the sun].",
        "They [sat down|stayed there] until the [sun went down|stars came out] and shared the"
            " {food}.",
    ],
    "a birthday": [
        "It was the birthday of {hero}'s {family}. {hero} wanted to give {their} {family} a"
            " {object}, but {they} had no money.",
        'So {they} went to the {job} and [asked|said], "[Can I work for you|Do you have some'
            ' work for me]?"',
        '"Yes," said the {job}. "[You can clean the floor|You can carry the boxes|You can help'
            ' me all day]."',
        "{hero} worked [hard|all day|until the evening]. {They} was tired, but {they} did not"
            " stop.",
        "The {job} was [pleased|very kind] and gave {them} [three coins|a few coins|some money].",
        "{hero} ran to the market and bought a [beautiful|little] {color} {object}.",
        "When the {family} saw the {object}, {fam_they} [smiled|laughed with joy|had tears in"
            ' the eyes]. "[This is the best gift of all|What a lovely {object}]," {fam_they} said.',
    ],
    "a quarrel about a {object}": [
        "[One day|One afternoon], {hero} and {friend} found a {color} {object} [near the"
            " {wild}|on the road to the {other_place}].",
        '"It is mine!" said {hero}. "[I saw it first|No, it is mine]!" said {friend}.',
        "They both pulled, and the {object} [fell into the water|broke in two|fell on a stone].",
        "Now they were both [sad|sorry]. [Nobody said a word.|{friend} began to cry.|They went"
            " home without a word.]",
        'In the morning {hero} went to {friend} and said, "I am sorry. [A friend is better than'
            ' a {object}|I do not want to fight]."',
        '"I am sorry too," said {friend}. "[Let us mend it together|We can share it]."',
        "They worked [all day|until noon], and soon the {object} was [as good as new|whole again].",
        "[On Monday {hero} had it, and on Tuesday {friend} had it.|They put it in a place where"
            " both could see it.]",
    ],
    "a storm": [
        "[One night|One evening|In the autumn], there was a [great|terrible] storm. The wind"
            " was [loud|strong], and the rain fell on the roof.",
        '"Where is the {animal}?" asked {hero}. The {animal} was not in the barn.',
        "{hero} took a [lamp|warm coat and a lamp] and went out into the [dark|rain]. {Their}"
            " {family} [called {them} back|was worried], but {they} was brave.",
        "{They} looked [near the {place}|by the {wild}] and called and called.",
        "Then {they} heard a [small|sad] sound. The {animal} was [under a fallen tree|behind a"
            " big stone|deep in the mud]!",
        "{hero} ran to get {friend}, and together they [pulled|pushed] until the {animal} was"
            " free.",
        "They brought the {animal} home and gave it {food} and [dry|warm] straw.",
        "[In the morning the sun was shining again.|The storm was over, and the stars were"
            " bright.]",
    ],
    "something new": [
        "All the other children could [swim|ride a horse|skate on the ice], but {hero} could"
            " not. {They} was [afraid|too shy to try].",
        '[One day|One morning], {friend} said, "[I will teach you|Come, I will show you how]."',
        "They went to the {wild}. {hero} tried once and [fell|failed]. {They} tried again and"
            " [fell|failed] again.",
        '"[I cannot do it|It is too hard]," said {hero}. "[Do not give up|Try one more time],"'
            " said {friend}.",
        "So {they} [tried every day|practiced for a whole week]. Little by little, it went better.",
        "On the day of the summer [feast|fair], everybody [was there|came to watch]. {hero}"
            " [took a deep breath|closed {their} eyes] and began.",
        "And {they} did it! Everyone [clapped|cheered], and {friend} [clapped|cheered] the"
            " loudest.",
        "{hero}'s {family} was very proud.",
    ],
    "a secret map": [
        "[One rainy day|One day], {hero} found an old [box|book] under the roof. In it was a"
            " map with a [red|black] cross.",
        '{hero} showed the map to {friend}. "[It is a treasure map|Let us find the treasure]!"'
            " said {friend}.",
        "They followed the map past the {other_place} and the {last_place}.",
        "[On the way they met an old {animal}.|On the way it became dark.|They walked for"
            ' hours.] ["Are you sure?" asked {friend}. "Yes," said {hero}.|But they did not turn'
            " back.]",
        "Under a [tall|dead|great] tree they began to dig. [They dug and dug.|The ground was"
            " hard.]",
        "At last they found a [small|heavy] chest. [Their hands shook as they opened it.|{hero}"
            " opened it slowly.]",
        'There was no gold in it, only a {color} {object} and a letter. The letter said, "[The'
            ' best treasure is a good friend|Share this with someone you love]."',
        "{hero} and {friend} looked at each other and [smiled|laughed].",
    ],
    "a {beast} and a {pet}": [
        "Near the {wild} lived a big {beast} and a little {pet}. The {beast} was"
            " [proud|strong], and the {pet} was [clever|small but brave].",
        '"You are so small," said the {beast}. "[What can you do?|You cannot help anyone.]" The'
            " {pet} [said nothing|only smiled].",
        "One day the {beast} [fell into a deep hole|was caught in a net]. It [called for"
            " help|cried loudly], but it could not get out.",
        "{hero} heard the noise, but {they} was [too weak|too far away] to help alone.",
        'Then the {pet} came. "[Wait|Be quiet]!" it said, and it [brought a long rope|cut the'
            " ropes with its teeth|ran to bring {friend}].",
        '[Soon|In a short time] the {beast} was free. "[I was wrong|Forgive me]," it said. "You'
            ' are small, but your heart is big."',
        "[Since then|After that], the {beast} and the {pet} [shared all their {food}|walked"
            " together every day].",
    ],
    "a garden": [
        "In the spring, {hero} put a [small|tiny] seed into the ground behind the house. {They}"
            " gave it water every [day|morning].",
        "A week went by, and nothing [grew|happened]. Two weeks went by, and still nothing"
            " [grew|happened].",
        '"[The seed is dead|It will never grow]," said {hero} sadly. But {their} {family} said,'
            ' "[Wait a little longer|Good things need time]."',
        "So {hero} waited. {They} [sang to the seed|kept the birds away|gave it water again and"
            " again].",
        "Then, after a warm rain, {they} saw a little green leaf! {hero} [clapped {their}"
            " hands|danced with joy].",
        "The plant grew and grew, until it was [as tall as the house|taller than {hero}].",
        "In the summer it had a big {color} flower, and all the people of the village came to"
            " see it.",
        "[{hero} gave a seed to each of them.|{hero} kept the new seeds in a box for the next"
            " year.]",
    ],
    "a new child at school": [
        "A new {f_child} came to the school. {f_Their} name was {friend}, and {f_they} was very"
            " [shy|quiet].",
        "At noon {friend} sat alone [under a tree|by the wall] and ate [{food}|a piece of bread].",
        '{hero} saw {f_them} and thought, "[I will talk to {f_them}|{f_They} looks lonely]."',
        '"[Hello|Good day]," said {hero}. "[Do you want to play with us|May I sit with you]?"'
            " {friend} [smiled a little|nodded].",
        "They played with a {color} [ball|kite] until the bell rang. {friend} [ran faster than"
            " everyone|laughed for the first time].",
        "After school {hero} showed {f_them} the {other_place} and the {last_place}.",
        '"[I was afraid to come here|I thought I would have no friends]," said {friend}. "Now I'
            ' am [happy|glad]."',
    ],
    "a kind {job}": [
        "In the village there was a {job} who was [old and poor|always alone]. Nobody [visited"
            " the house|talked to the {job}].",
        "[One winter day|One day], {hero} saw that there was no smoke over the house of the {job}.",
        "{They} knocked at the door. The {job} was ill and lay in bed [without fire|in the cold].",
        "{hero} [made a fire|brought wood] and cooked some soup. Then {they} ran to get"
            " {friend} and the doctor.",
        "[For a week|Every day] {hero} and {friend} came with {food} and told [funny"
            " stories|the news of the village].",
        "When the {job} was well again, {hero} found a {color} {object} at the door.",
        '"[I made it for you|It is for you]," said the {job}. "[You gave me back my life|A good'
            ' heart is rare]."',
    ],
}


# Where nobody makes friends, the first ending does not fit.
LONELY_PLOTS = ("a hungry {pet}", "a birthday", "a {beast} and a {pet}", "a garden")


def make_story(random):
    """(what it is about, its text)."""
    cast = new_cast(random)
    topic = random.choice(list(PLOTS))
    ending = random.choice(ENDINGS[1:] if topic in LONELY_PLOTS else ENDINGS)
    patterns = [random.choice(OPENINGS), *PLOTS[topic], ending]
    text = " ".join(expand(pattern, cast, random) for pattern in patterns)
    return expand(topic, cast, random), text


# What a text can tell: the sentence, and questions with the word of the cast that they ask for. A
# question names the sentence's first noun, so that the answer, which repeats the sentence, begins
# with what the question tells.
FACTS = {
    "go": ("{x} [went|walked|ran] to the {place}.", [("Where did {x} go?", "place")]),
    "give": (
        "{x} gave {y} the {object}.",
        [("What did {x} give to {y}?", "object"), ("Who got something from {x}?", "y")],
    ),
    "put": (
        "{x} put the {object} at the {place}.",
        [
            ("What did {x} put at the {place}?", "object"),
            ("Where did {x} put the {object}?", "place"),
        ],
    ),
    "pet": (
        "{x} had a {color} {animal}.",
        [("Which animal did {x} have?", "animal"), ("What color was the animal of {x}?", "color")],
    ),
    "eat": ("{x} ate some {food}.", [("What did {x} eat?", "food")]),
    "work": ("{x} was a {job}.", [("What was the work of {x}?", "job")]),
    "meet": (
        "{x} met {y} at the {place}.",
        [("Who did {x} meet?", "y"), ("Where did {x} meet {y}?", "place")],
    ),
    "find": (
        "{x} found a {color} {object} near the {place}.",
        [("What did {x} find?", "object"), ("Where did {x} find something?", "place")],
    ),
    "lie": ("The {object} was [near|behind] the {place}.", [("Where was the {object}?", "place")]),
    "belong": ("The {animal} belonged to {x}.", [("Who had the {animal}?", "x")]),
    "make": ("The {object} was made by {x}.", [("Who made the {object}?", "x")]),
}
KINDS = {
    "x": PEOPLE,
    "y": PEOPLE,
    "object": OBJECTS,
    "place": PLACES,
    "animal": ANIMALS,
    "color": COLORS,
    "food": FOODS,
    "job": JOBS,
}
# In front of the answer's sentence, whose words are then the same pieces as in the text.
ANSWER = "I read that "
WEATHER = "[It was a [cold|warm|quiet|rainy] [day|week]. |The sun was shining. ||]"


def answer(sentence):
    return ANSWER + re.sub("^The ", "the ", sentence)


class Text:
    """A few facts. No word of the cast is in two of them, so that questions have one answer."""

    def __init__(self, random, facts):
        self.random = random
        people = random.sample(PEOPLE, len(PEOPLE))
        unused = {
            kind: people if words is PEOPLE else random.sample(words, len(words))
            for kind, words in KINDS.items()
        }
        told = [random.choice(list(FACTS)), *random.sample(list(FACTS), facts - 1)]
        # Of each fact: its pattern without alternatives, its cast, its questions.
        self.facts = [
            (
                choose(FACTS[kind][0], random),
                {name: words.pop() for name, words in unused.items()},
                FACTS[kind][1],
            )
            for kind in random.sample(told, len(told))
        ]
        self.text = expand(WEATHER, {}, random) + " ".join(
            fill(pattern, cast) for pattern, cast, _ in self.facts
        )

    def questions(self, count):
        """So many, or all if there are not: (question, choices, index of the right one)."""
        possible = [
            (pattern, cast, *question)
            for pattern, cast, questions in self.facts
            for question in questions
        ]
        return [
            self.question(*chosen)
            for chosen in self.random.sample(possible, min(count, len(possible)))
        ]

    def question(self, pattern, cast, question, slot):
        right = answer(fill(pattern, cast))
        wrong = [
            answer(fill(pattern, {**cast, slot: word})) for word in self.distractors(cast, slot)
        ]
        choices = self.random.sample([right, *wrong], 4)
        return fill(question, cast), choices, choices.index(right)

    def told(self):
        """Every fact as an answer tells it, in random order."""
        return [
            answer(fill(pattern, cast))
            for pattern, cast, _ in self.random.sample(self.facts, len(self.facts))
        ]

    def distractors(self, cast, slot):
        """Three words that could stand there: those of the text first."""
        others = self.random.sample(KINDS[slot], len(KINDS[slot]))
        return sorted(
            (word for word in others if word not in cast.values()),
            key=lambda word: word not in self.text,
        )[:3]
