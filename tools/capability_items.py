"""The items of the regression suite, before any is dropped: templates with a seed, and facts written by hand.

Forced choices have four options, the right one first. Wrong options are mistakes that one could make: off by one, the
other operation, the neighbour in a list.
"""

import random

NAMES = "Ann Ben Cara Dan Eva Finn Gina Hugo Iris Jon Kim Leo Mia Noah Olga Paul Rosa Sam Tess Uma".split()
THINGS = "apples pens books eggs shells stamps coins cards plums buttons keys cups".split()
WORDS = """river lamp garden silver bridge pencil orange window candle basket monkey yellow planet summer castle
ticket button spider carpet violin pepper hammer island jacket kettle ladder magnet needle oyster pillow rocket
saddle""".split()
FACTS = """
The capital of Portugal is | Lisbon | Madrid | Porto | Rome
The capital of Norway is | Oslo | Stockholm | Bergen | Helsinki
The capital of Canada is | Ottawa | Toronto | Vancouver | Montreal
The capital of Australia is | Canberra | Sydney | Melbourne | Perth
The capital of Turkey is | Ankara | Istanbul | Izmir | Athens
The capital of Kenya is | Nairobi | Lagos | Mombasa | Kampala
The capital of Peru is | Lima | Quito | Bogota | Cusco
The capital of Hungary is | Budapest | Vienna | Prague | Bucharest
The capital of Vietnam is | Hanoi | Bangkok | Saigon | Manila
The capital of Egypt is | Cairo | Tripoli | Alexandria | Tunis
The number of days in a leap year is | 366 | 365 | 364 | 360
The number of sides of a hexagon is | 6 | 5 | 8 | 7
The number of legs of a spider is | 8 | 6 | 10 | 4
The number of minutes in two hours is | 120 | 60 | 100 | 240
The number of months with 31 days is | 7 | 6 | 5 | 8
The number of letters in the English alphabet is | 26 | 24 | 25 | 28
The number of players in a football team on the field is | 11 | 10 | 9 | 12
The number of strings of a violin is | 4 | 6 | 5 | 3
The number of planets in the solar system is | 8 | 9 | 7 | 10
The number of degrees in a right angle is | 90 | 45 | 180 | 60
Water boils at sea level at a temperature in Celsius of | 100 | 90 | 212 | 0
Water freezes at a temperature in Fahrenheit of | 32 | 0 | 100 | 12
A baby cow is called a | calf | foal | lamb | cub
A baby goat is called a | kid | calf | pup | chick
A baby horse is called a | foal | calf | lamb | kid
A baby swan is called a | cygnet | duckling | gosling | chick
A group of wolves is called a | pack | herd | flock | school
A group of fish is called a | school | pack | herd | litter
A female sheep is called a | ewe | ram | mare | hen
A male duck is called a | drake | goose | rooster | bull
Bees live in a | hive | nest | web | den
Honey is made by | bees | ants | birds | cows
Paper is made from | wood | glass | sand | iron
Glass is made from | sand | wood | oil | iron
Bread is made from | flour | rice | sand | milk
Cheese is made from | milk | flour | eggs | sugar
Wine is made from | grapes | apples | barley | hops
Raisins are dried | grapes | plums | apples | figs
Prunes are dried | plums | grapes | apricots | figs
The opposite of ancient is | modern | old | large | early
The opposite of shallow is | deep | wide | narrow | low
The opposite of generous is | stingy | kind | rich | poor
The opposite of victory is | defeat | battle | win | peace
The opposite of rough is | smooth | hard | loud | soft
The opposite of guilty is | innocent | wrong | sorry | honest
The opposite of scarce is | plentiful | rare | small | cheap
The largest ocean on Earth is the | Pacific | Atlantic | Indian | Arctic
The largest planet of the solar system is | Jupiter | Saturn | Neptune | Earth
The planet closest to the Sun is | Mercury | Venus | Mars | Earth
The red planet is | Mars | Venus | Jupiter | Saturn
The longest bone of the human body is in the | leg | arm | back | hand
The organ that pumps blood is the | heart | liver | lung | brain
The gas that plants take from the air is | carbon dioxide | oxygen | nitrogen | helium
The gas that most of the air consists of is | nitrogen | oxygen | carbon dioxide | hydrogen
The chemical symbol of gold is | Au | Ag | Go | Gd
The chemical symbol of iron is | Fe | Ir | In | I
The chemical symbol of sodium is | Na | So | S | Sd
The chemical symbol of silver is | Ag | Au | Si | Sv
The language of Brazil is | Portuguese | Spanish | English | French
The language of Austria is | German | French | Austrian | Italian
The currency of Japan is the | yen | yuan | won | dollar
The currency of India is the | rupee | yen | dollar | pound
The river that flows through Paris is the | Seine | Rhine | Thames | Loire
The river that flows through London is the | Thames | Seine | Severn | Rhine
The highest mountain on Earth is | Everest | Kilimanjaro | Mont Blanc | Denali
The month after August is | September | October | July | November
The month before March is | February | April | January | May
The day after Thursday is | Friday | Wednesday | Saturday | Sunday
The day before Sunday is | Saturday | Monday | Friday | Thursday
The colour of a ruby is | red | green | blue | yellow
The colour of an emerald is | green | red | blue | white
Mixing blue and yellow gives | green | purple | orange | brown
Mixing red and blue gives | purple | green | orange | brown
Mixing red and yellow gives | orange | green | purple | brown
A person who repairs pipes is a | plumber | carpenter | baker | tailor
A person who makes clothes is a | tailor | baker | plumber | mason
A person who bakes bread is a | baker | butcher | tailor | barber
A person who designs houses is an | architect | author | artist | actor
A tool to drive in a nail is a | hammer | saw | spoon | wrench
A tool to measure temperature is a | thermometer | barometer | ruler | scale
A tool to look at stars is a | telescope | microscope | compass | mirror
Winter in Australia begins in | June | December | March | September
The sun rises in the | east | west | north | south
A compass needle points to the | north | east | south | west
Penguins live mostly in the | south | north | east | desert
The author of Hamlet is | Shakespeare | Dickens | Milton | Goethe
The author of Oliver Twist is | Dickens | Shakespeare | Austen | Twain
The painter of the Mona Lisa is | Leonardo | Picasso | Rembrandt | Monet
The composer of the Moonlight Sonata is | Beethoven | Mozart | Bach | Chopin
"""  # fmt: skip
FOLLOWING = """
Answer with one word. Which animal barks? | Dog. | It is the dog that barks. | Cat. | A dog, of course.
Answer with one word. What colour is grass? | Green. | Grass is green in colour. | Red. | The grass is green.
Answer with one word. What do we drink? | Water. | We drink water. | Stone. | You can drink water.
Answer yes or no. Is ice cold? | Yes. | Ice is cold. | No. | It is cold.
Answer yes or no. Can fish fly? | No. | Fish cannot fly. | Yes. | They swim.
Answer yes or no. Is the sun hot? | Yes. | The sun is hot. | No. | It is hot.
Answer in capital letters. What is the opposite of hot? | COLD | Cold | cold | HOT
Answer in capital letters. Which animal says meow? | CAT | Cat | cat | DOG
Answer in capital letters. Name a season. | WINTER | Winter | winter | MONDAY
Answer in capital letters. Name a metal. | IRON | Iron | iron | WOOD
Answer in small letters. What is the capital of France? | paris | Paris | PARIS | london
Answer in small letters. Name a day of the week. | monday | Monday | MONDAY | june
Answer with a number written in digits. How many legs has a cat? | 4 | Four | four | 3
Answer with a number written in digits. How many days has a week? | 7 | Seven | seven | 5
Answer with a number written as a word. How many eyes do you have? | two | 2 | three | 3
Answer with a number written as a word. How many wheels has a car? | four | 4 | five | 3
Answer with a number written as a word. How many months has a year? | twelve | 12 | ten | 10
End your answer with an exclamation mark. How are you? | I am fine! | I am fine. | I am fine? | I am fine
End your answer with a question mark. Greet a friend. | How are you? | How are you. | Hello there! | Hello there.
Begin your answer with "Well". Do you like tea? | Well, I do. | I do. | Yes, I do. | I like tea well.
Begin your answer with "Sure". Can you help me? | Sure, I can. | Yes, I can. | I can help. | I am sure.
Do not use the word "red". What colour is blood? | The colour of a ripe tomato. | Red. | It is red. | Blood is red.
Do not use the word "bird". What is a sparrow? | A small animal with wings. | A bird. | A small bird. | It is a bird.
Name two fruits, separated by a comma. | apple, pear | apple pear | apple | apple and pear
Name two colours, separated by a comma. | red, blue | red blue | red | red and blue
Name three animals, separated by commas. | cat, dog, cow | cat, dog | cat | cat dog cow
Give the answer in brackets. What is the capital of Spain? | [Madrid] | Madrid | "Madrid" | [Paris]
Give the answer in quotation marks. What is the capital of Italy? | "Rome" | Rome | [Rome] | "Paris"
Write the name of this month with its first letter only. It is June. | J | June | june | M
Write only the first letter of the word. Word: table | t | table | b | e
Write only the last letter of the word. Word: house | e | h | house | s
Write the word twice. Word: tick | tick tick | tick | tick tick tick | tock
Write the word three times. Word: go | go go go | go | go go | go go go go
Answer in French. Thank you. | Merci. | Thank you. | Danke. | Gracias.
Answer in Spanish. Good day. | Buenos dias. | Good day. | Bonjour. | Guten Tag.
Answer in German. Yes. | Ja. | Yes. | Oui. | Si.
Answer with the second option only: tea, milk, juice. | milk | tea | juice | water
Answer with the last option only: cat, dog, hen. | hen | cat | dog | pig
Answer with the first option only: gold, iron, lead. | gold | iron | lead | tin
Repeat without the last word: We like green tea. | We like green | We like green tea | green tea | We like
"""
QUESTIONS = "What is a dog?;What is rain?;Why do we sleep?;How do birds fly?".split(";")


def lines(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")] for line in text.strip().splitlines()]


def numbers(right: int, wrong) -> list[str]:
    """Four options as digits: the right number, then the first three others that differ and are not negative."""
    others = []
    for value in [*wrong, right + 1, right - 1, right + 10, right + 2, right + 3]:
        if value >= 0 and value != right and value not in others:
            others.append(value)
    return [f" {value}" for value in [right, *others[:3]]]


def arithmetic(rng) -> list[tuple]:
    rows = []
    for _ in range(25):
        a, b = rng.randint(6, 60), rng.randint(6, 39)
        rows.append((f"{a} + {b} =", numbers(a + b, [a + b + 10, a + b - 1, abs(a - b)])))
        a, b = max(a, b) + 3, min(a, b)
        rows.append((f"{a} - {b} =", numbers(a - b, [a - b + 10, a - b - 1, a + b])))
        a, b = rng.randint(3, 12), rng.randint(3, 9)
        rows.append((f"{a} times {b} is", numbers(a * b, [a * b + a, a * b - b, a + b])))
    for _ in range(15):
        b, q = rng.randint(2, 9), rng.randint(2, 9)
        rows.append((f"{b * q} divided by {b} is", numbers(q, [q + 1, q - 1, b * q - b])))
    return rows


def copying(rng) -> list[tuple]:
    rows = []
    for _ in range(14):
        a, b, c, d = rng.sample(WORDS, 4)
        place, right = rng.choice([("first", a), ("second", b), ("third", c), ("last", d)])
        wrong = [word for word in (a, b, c, d) if word != right]
        rows.append((f"Words: {a}, {b}, {c}, {d}\nThe {place} word:", [f" {w}" for w in [right, *wrong]]))
        ordered = sorted([a, b, c])
        orders = [ordered, [ordered[1], ordered[0], ordered[2]], [ordered[2], ordered[1], ordered[0]]]
        orders.append([ordered[0], ordered[2], ordered[1]])
        rows.append(
            (
                f"Sort by the alphabet: {ordered[1]}, {ordered[2]}, {ordered[0]}\nSorted:",
                [f" {', '.join(o)}" for o in orders],
            )
        )
        options = [f" {c}, {b}, {a}", f" {a}, {b}, {c}", f" {c}, {a}, {b}", f" {b}, {a}, {c}"]
        rows.append(
            (
                f"Turn the list round: red, blue, green -> green, blue, red\nTurn the list round: {a}, {b}, {c} ->",
                options,
            )
        )
        day, month, year = rng.randint(1, 28), rng.randint(1, 12), rng.randint(1950, 2020)
        dates = [(day, month), (month, day), (day, month % 12 + 1), (day + 1, month)]
        shown = [f" {year}-{m:02d}-{d:02d}" for d, m in dates]
        if len(set(shown)) == 4:
            rows.append((f"Write dates as year-month-day.\n3.5.1987 -> 1987-05-03\n{day}.{month}.{year} ->", shown))
        rows.append((f"silver -> s-i-l-v-e-r\n{a} ->", [f" {'-'.join(w)}" for w in spellings(a, rng)]))
    return rows


def spellings(word: str, rng) -> list[str]:
    """The word, and three slips: a letter left out, two neighbours exchanged, a letter doubled."""
    k = rng.randint(1, len(word) - 3)
    swapped = word[:k] + word[k + 1] + word[k] + word[k + 2 :]
    slips = [word[:k] + word[k + 1 :], swapped if swapped != word else word[::-1], word[:k] + word[k] + word[k:]]
    return [word, *slips]


def steps(rng) -> list[tuple]:
    """Worked problems: the question alone, and the question with the steps written out up to the last result."""
    rows = []
    for _ in range(20):
        name, thing = rng.choice(NAMES), rng.choice(THINGS)
        a, b, c = rng.randint(4, 20), rng.randint(2, 6), rng.randint(2, 9)
        total = a + b * c
        question = (
            f"Q: {name} has {a} {thing} and buys {b} bags of {c} {thing}. How many {thing} does {name} have now?\nA:"
        )
        rows.append((question, numbers(total, [a + b + c, b * c, a * b])))
        rows.append(
            (
                f"{question} The bags hold {b} x {c} = {b * c} {thing}. {a} + {b * c} =",
                numbers(total, [a + b + c, b * c, a]),
            )
        )
        a, b, c = rng.randint(12, 30), rng.randint(2, 5), rng.randint(2, 6)
        left = a - b - c
        question = f"Q: {name} has {a} {thing}, gives away {b} and loses {c}. How many {thing} are left?\nA:"
        rows.append((question, numbers(left, [a - b, a - c, a + b + c])))
        rows.append((f"{question} {name} gives away {b}: {a} - {b} = {a - b}. {name} loses {c}: {a - b} - {c} =",
                     numbers(left, [a - b, a - c, a - b + c])))  # fmt: skip
        first, second, third = rng.sample(NAMES, 3)
        text = f"{first} is taller than {second}. {second} is taller than {third}. The tallest of them is"
        rows.append(
            (
                text,
                [f" {first}", f" {second}", f" {third}", f" {name if name not in (first, second, third) else 'Zoe'}"],
            )
        )
    return rows


def code(rng) -> list[tuple]:
    rows = []
    for _ in range(9):
        a, b = rng.randint(2, 9), rng.randint(2, 9)
        xs = rng.sample(range(1, 10), 4)
        word = rng.choice(WORDS)
        k = rng.randint(0, 3)
        rows += [
            (f">>> x = {a}\n>>> x = x + {b}\n>>> print(x)\n", numbers(a + b, [a, b, a * b])),
            (f">>> a = {a}\n>>> b = a * {b}\n>>> print(b)\n", numbers(a * b, [a + b, a, b])),
            (f">>> xs = {xs}\n>>> xs[{k}]\n", numbers(xs[k], [x for x in xs if x != xs[k]])),
            (f">>> max({xs})\n", numbers(max(xs), [min(xs), xs[0], xs[-1]])),
            (f">>> sum({xs})\n", numbers(sum(xs), [max(xs), sum(xs) - xs[0], len(xs)])),
            (f">>> len('{word}')\n", numbers(len(word), [len(word) + 1, len(word) - 1, 1])),
            (f">>> '{word}'[0]\n", [f"'{x}'" for x in letters(word, rng)]),
            (
                f">>> x = {a}\n>>> x > {b}\n",
                ["True", "False", "None", str(a)] if a > b else ["False", "True", "None", str(a)],
            ),
        ]
    return [(prompt, [option.strip() for option in options]) for prompt, options in rows]


def letters(word: str, rng) -> list[str]:
    others = [x for x in dict.fromkeys(word) if x != word[0]]
    return [word[0], *rng.sample(others, 3)]


def rules(rng) -> list[tuple]:
    """(prompt, rule, argument): what is asked is what the rule checks."""
    rows = []
    for question in QUESTIONS:
        rows += [
            (f"{question} Answer with one word only.", "one word", None),
            (f"{question} Answer in at most ten words.", "at most words", 10),
            (f"{question} Answer in one short sentence.", "one sentence", None),
            (f"{question} Write your answer in CAPITAL LETTERS only.", "upper case", None),
            (f'{question} Begin your answer with "Well".', "starts", "Well"),
            (f'{question} Use the word "always" in your answer.', "contains", "always"),
            (f'{question} Do not use the word "the" in your answer.', "avoids", "the"),
            (f"{question} Keep it short and end your answer with an exclamation mark.", "ends", "!"),
        ]
    for thing in ("fruits", "animals", "colours", "cities", "metals", "sports"):
        rows += [
            (f"List exactly three {thing}, one per line, each with a dash.", "list", 3),
            (f"Name three {thing} in one line, separated by commas, nothing else.", "commas", 2),
            (f'Give one of the {thing} as JSON with the key "name".', "json", "name"),
        ]
    return rows


def items(seed: int) -> list[dict]:
    """All items, without repeats: ``id, family, prompt, options, rule, argument``."""
    rng = random.Random(seed)
    families = {
        "arithmetic": arithmetic(rng),
        "facts": [(prompt, [f" {option}" for option in options]) for prompt, *options in lines(FACTS)],
        "copying": copying(rng),
        "following": [(f"{prompt}\nAnswer:", [f" {o}" for o in options]) for prompt, *options in lines(FOLLOWING)],
        "steps": steps(rng),
        "code": code(rng),
        "rules": rules(rng),
    }
    rows, seen = [], set()
    for family, written in families.items():
        for prompt, *rest in written:
            if prompt in seen:
                continue
            seen.add(prompt)
            options, rule, argument = (rest[0], None, None) if len(rest) == 1 else ([], *rest)
            number = sum(row["family"] == family for row in rows)
            row = {"id": f"{family}-{number:03d}", "family": family, "prompt": prompt, "options": options}
            rows.append(row | {"rule": rule, "argument": argument})
    return rows
