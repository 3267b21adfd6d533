#include "coordinator/text/template_recognition.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace marcoro {
namespace {

TEST(Canonicalize, CodeLosesItsWhiteSpaceParenthesesAndKindOfQuotes) {
  EXPECT_EQ(Canonicalize("{%- if  (x == \"a b\")  -%}{{ x }}{% endif %}").text,
            "{if x=='a b'}x{endif}");
}

TEST(Canonicalize, RolesAndContentsHaveOneName) {
  for (const char* text : {"{{ m['content'] }}", "{{message.content}}", "{{ m[\"content\"] }}"}) {
    EXPECT_EQ(Canonicalize(text).text, "CONTENT");
  }
  EXPECT_EQ(Canonicalize("{{ messages[0]['role'] }}").text, "messages[0]ROLE");
}

TEST(Canonicalize, WhatIsWrittenOneAfterTheOtherIsJoined) {
  EXPECT_EQ(Canonicalize("a{{ x }}{{ 'b' + 'c' }}d").text, "'a'+x+'bcd'");
  EXPECT_EQ(Canonicalize("{{ 'a' ~ x }}").text, "'a'+x");
  EXPECT_EQ(Canonicalize("a{% if x %}b{% endif %}").text, "'a'{if x}'b'{endif}");
}

TEST(Canonicalize, EscapesAreResolved) {
  EXPECT_EQ(Canonicalize(R"({{ 'a\n\'b' }})").text, "'a\n\\'b'");
}

TEST(Canonicalize, WhiteSpaceThatTagsTakeAwayIsGone) {
  EXPECT_EQ(Canonicalize("{% if x %}\n  {% endif %}\n").text, "{if x}{endif}");
  EXPECT_EQ(Canonicalize("{{ x -}}  \n  a  \n {{- y }}").text, "x+'a'+y");
  EXPECT_EQ(Canonicalize("{{ x }}\n{{ y }}").text, "x+'\n'+y");
  EXPECT_EQ(Canonicalize("{# note #}\na").text, "'a'");
}

TEST(Canonicalize, ErrorsAreCollected) {
  const CanonicalTemplate canonical = Canonicalize(
      "{% if x %}{{ raise_exception('one') }}{% else %}{{ raise_exception(\"two\") }}{% endif %}");
  EXPECT_EQ(canonical.text, "{if x}{else}{endif}");
  EXPECT_THAT(canonical.errors, testing::ElementsAre("one", "two"));
}

TEST(Canonicalize, UnfinishedTextsAreTakenAsTheyAre) {
  EXPECT_EQ(Canonicalize("{{ 'a").text, "'a'");
  EXPECT_EQ(Canonicalize("{{ 'a\\").text, "'a\\'");
  EXPECT_EQ(Canonicalize("{% if").text, "{if}");
  EXPECT_EQ(Canonicalize("{#").text, "");
  EXPECT_EQ(Canonicalize("{").text, "'{'");
}

}  // namespace
}  // namespace marcoro
