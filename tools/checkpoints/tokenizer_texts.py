"""The texts of the tokenizer fixtures: MULTILINGUAL and CODE to train on, TEXTS to encode.

All written for this project, but for Article 1 of the Universal Declaration of Human Rights in
MULTILINGUAL (United Nations, free to reproduce).
"""

MULTILINGUAL = [
    "All human beings are born free and equal in dignity and rights. They are endowed with "
    "reason and conscience and should act towards one another in a spirit of brotherhood.",
    "Tous les êtres humains naissent libres et égaux en dignité et en droits. Ils sont doués de"
    " raison et de conscience et doivent agir les uns envers les autres dans un esprit de "
    "fraternité.",
    "Alle Menschen sind frei und gleich an Würde und Rechten geboren. Sie sind mit Vernunft und"
    " Gewissen begabt und sollen einander im Geist der Brüderlichkeit begegnen.",
    "Todos los seres humanos nacen libres e iguales en dignidad y derechos y, dotados como "
    "están de razón y conciencia, deben comportarse fraternalmente los unos con los otros.",
    "Все люди рождаются свободными и равными в своем достоинстве и правах. Они наделены разумом"
    " и совестью и должны поступать в отношении друг друга в духе братства.",
    "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια και τα δικαιώματα. Είναι "
    "προικισμένοι με λογική και συνείδηση.",
    "人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心，并应以兄弟关系的精神相对待。",
    "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。",
    "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다.",
    "يولد جميع الناس أحرارًا متساوين في الكرامة والحقوق. وقد وهبوا عقلاً وضميراً.",
    "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है।",
    "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ",
    "Wszyscy ludzie rodzą się wolni i równi pod względem swej godności i swych praw.",
    "Tất cả mọi người sinh ra đều được tự do và bình đẳng về nhân phẩm và quyền lợi.",
    "כל בני האדם נולדו בני חורין ושווים בערכם ובזכויותיהם.",
]

CODE = [
    "def fibonacci(n):\n    a, b = 0, 1\n    for _ in range(n):\n"
    "        a, b = b, a + b\n    return a\n",
    "#include <vector>\n\nint main() {\n  std::vector<int> v = {1, 2, 3};\n"
    "  for (int i = 0; i < 3; ++i) {\n"
    "    v[i] += i;\n  }\n  return v[2];\n}\n",
    "func main() {\n\tfor i := 0; i < 10; i++ {\n\t\tfmt.Println(i)\n\t}\n}\n",
    "SELECT name, COUNT(*) FROM users WHERE id > 100 GROUP BY name ORDER BY 2 DESC;\n",
    'fn main() {\n    let x: Option<u32> = Some(5);\n    println!("{:?}", x);\n}\n',
    "const f = async (x) => { return await fetch(`https://example.com/${x}`); };\n",
    '<div class="row">\n  <a href="/index.html">Home</a>\n</div>\n',
    '{"model": "llama", "layers": [1, 2, 3], "tied": false, "scale": 1.0e-5}\n',
]

# In each of these, what is being tested comes first; llama3's and qwen3's special tokens follow in
# the lists of make_tokenizer_fixtures.py.
TEXTS = [
    "",
    " ",
    "  ",
    "   ",
    "a",
    " a",
    "  a",
    "   a   b    c",
    "Hello, world!",
    "Hello world",
    "The quick brown fox jumps over the lazy dog.",
    "the people of the United States",
    # Languages and scripts.
    "你好，世界！今天天气怎么样？",
    "人人生而自由，在尊严和权利上一律平等。",
    "春はあけぼの。やうやう白くなりゆく山ぎは",
    "カタカナ と ひらがな と 漢字",
    "안녕하세요, 세계! 오늘 날씨가 어때요?",
    "مرحبا بالعالم، كيف حالك اليوم؟",
    "العربية ١٢٣٤٥ أرقام",
    "नमस्ते दुनिया, आप कैसे हैं?",
    "हिन्दी में १२३४ अंक",
    "สวัสดีชาวโลก วันนี้เป็นอย่างไรบ้าง",
    "Привет, мир! Как дела сегодня?",
    "Съешь ещё этих мягких французских булок",
    "Γειά σου Κόσμε! Τι κάνεις;",
    "שלום עולם, מה שלומך?",
    "Xin chào thế giới! Tiếng Việt có dấu",
    "Zażółć gęślą jaźń",
    "Ça va? Où êtes-vous, Zoë? naïve café",
    "Grüße aus Köln: Straße, Äpfel, Öl, Übung",
    # Composed and decomposed accents, compatibility forms: NFC joins the decomposed ones.
    "caf\u00e9 cafe\u0301",
    "A\u030angstro\u0308m \u00c5ngstr\u00f6m \u212bngstr\u00f6m",
    "\u1112\u1161\u11ab\u1100\u1173\u11af \ud55c\uae00",
    "q\u0307\u0323 \u1e9b\u0323 \ufb01 \u2126 \u212a",
    "n\u0303 \u00f1 e\u0301\u0302 \u0344 \u0958 \u2adc",
    "\u0e01\u0e33 \u0e33 \u0928\u093c",
    # Emoji.
    "😀 😃 😄",
    "👍🏽 👩🏿‍🚀 👨‍👩‍👧‍👦",
    "🇩🇪🇫🇷🇯🇵 🏴󠁧󠁢󠁳󠁣󠁴󠁿",
    "I ❤️ C++ ☃︎ ⌨️",
    "🤷‍♀️🤷🏽‍♂️!!",
    # Letters and numbers outside the basic plane, and other classes of characters.
    "𝕳𝖊𝖑𝖑𝖔 𝟘𝟙𝟚 𠮷野家 𐍈",
    "½ ² ³ ¹⁰ Ⅷ ① ㊿ ٣ ४",
    "€5 £10 ¥100 ₹7 5‰",
    "“quotes” ‘single’ «guillemets» — – …",
    "ﷺ ﬁ ĳ ǆ ß ẞ ı İ",
    "\u200bzero\u200bwidth\u200d joiner\ufeff bom",
    "a\u0300\u0301\u0302\u0303 zalgo z\u0336\u0335",
    # Source code.
    "def fibonacci(n):\n    a, b = 0, 1\n    for _ in range(n):\n"
    "        a, b = b, a + b\n    return a\n",
    "func main() {\n\tfor i := 0; i < 10; i++ {\n\t\tfmt.Println(i)\n\t}\n}\n",
    '#include <iostream>\r\nint main() {\r\n\tstd::cout << "hi\\n";\r\n}\r\n',
    "if (x != null && y >= 0x1F) { return x->y[i++] ?? `${z}`; } // comment",
    "SELECT * FROM t WHERE a='it''s' AND b<>3;--done",
    "x = {'a': [1, 2.5, -3e10], \"b\": None}",
    "    indented\n        more\n\tand a tab\n \t mixed",
    "a\t\tb\t c \t d",
    "https://example.com/a_b-c?d=e&f=%20#g",
    "\\begin{equation} \\frac{a}{b} \\end{equation}",
    '#!/bin/bash\nset -euo pipefail\n\n\necho "$1"',
    # Digits, 1 to 12 of them: Llama groups by three from the left, Qwen takes each alone.
    "1 12 123 1234 12345 123456 1234567 12345678 123456789 1234567890 12345678901 123456789012",
    "3.14159 1,234,567.89 1e-5 0x1F 2024-07-26 12:34:56",
    "abc123def456",
    "٠١٢٣٤٥٦٧٨٩",
    "v1.2.3-rc4",
    # Contractions.
    "I'm you're he's we've they'll I'd don't",
    "I'M YOU'RE HE'S WE'VE THEY'LL I'D DON'T",
    "'s 'RE 'Ve 'x 's's",
    "rock'n'roll O'Reilly l'été",
    "it\u2019s don\u2019t",
    "''s '' ' '\n's",
    "\u017f '\u017f 'S",
    # White space.
    "\n",
    "\n\n",
    "\n\n\n\n\n",
    "\r\n",
    "\r\n\r\n",
    "\r",
    "a\nb\r\nc\rd",
    "line\n\n\n   next",
    "trailing   ",
    "trailing\n",
    "trailing \n ",
    "  \n  \n  x",
    "\t",
    "\t\t\tx",
    " \t \n",
    "a \n b",
    "a  \n\n  b",
    "x   \t\t  y",
    "no\u00a0break\u00a0\u00a0space",
    "\u3000全角　空白",
    "\u2003em\u2009thin\u202fnarrow\u2028line\u2029paragraph\u0085nel",
    " \u00a0 x \u00a0",
    "\u00a0\n\u00a0",
    # Control characters.
    "nul\x00inside",
    "\x00",
    "\x01\x02\x1b[31mred\x1b[0m\x7f",
    "\x0b\x0cvertical\x0bform\x0c",
    "\u0080\u009f\ufffd\uffff",
    # Long runs.
    "a" * 300,
    " " * 300,
    "\n" * 100,
    "!" * 257,
    "0" * 100,
    "あ" * 80,
    "ab" * 150,
    "-" * 80 + "\n" + "=" * 79,
    "😀" * 40,
    "\u0301" * 50,
    (" " * 7 + "x") * 20,
    # Punctuation before letters and line ends.
    "!hello .world (paren) [b] {c} <d>",
    "end.\nStart",
    "end!!!\n\n\nStart",
    "...\r\n",
    "a.b.c",
    "$x_y",
    "@user #tag",
    "-- --- ---- -",
    "?!\n?!\r\n",
    "«\n",
    "_under_score_",
    "e.g. i.e. U.S.A.",
    "C++ C# F#",
    # Words that the llama3 fixture has whole although no merges lead to them (ignore_merges).
    "fabricast",
    " fabricast",
    "fabricasting fabricast.",
    "Qwertz qwertz",
    " pipelineparallel pipelineparallel",
    "zyxwvu",
    "ロケット",
    " ロケット発射",
]
