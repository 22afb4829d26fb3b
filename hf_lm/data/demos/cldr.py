"""Demos from CLDR, the Unicode consortium's data on languages and countries, through the package babel."""

import random
from datetime import date, timedelta
from functools import partial
from typing import Any

Row = dict[str, Any]
DAYS = {"month": 30, "year": 365}  # of the units that timedelta does not know


def phrases(source: str = "en", target: str = "de", *, rows: int = 6000, seed: int = 0) -> list[Row]:
    """Rows of {source: text, target: text}: dates, times, spans of time, amounts, countries, languages, currencies."""
    import babel
    from babel import dates, numbers, units

    one, other = babel.Locale.parse(source, sep="-"), babel.Locale.parse(target, sep="-")
    random_ = random.Random(seed)
    names = [(one.territories[key], other.territories[key]) for key in one.territories if key in other.territories]
    names += [(one.languages[key], other.languages[key]) for key in one.languages if key in other.languages]
    names += [(one.currencies[key], other.currencies[key]) for key in one.currencies if key in other.currencies]
    currencies = ["EUR", "USD", "CNY", "JPY", "GBP", "CHF"]
    lengths: list[Any] = ["hour", "minute", "day", "week", "month", "year"]
    measures = ["length-kilometer", "mass-kilogram", "volume-liter", "temperature-celsius", "speed-kilometer-per-hour"]

    def pair() -> tuple[str, str]:
        kind = random_.randrange(4)
        if kind == 0:
            day = date(1900, 1, 1) + timedelta(days=random_.randrange(73_000))
            said = partial(dates.format_date, day, random_.choice(["full", "long", "medium"]))
        elif kind == 1:
            amount, currency = random_.randrange(1, 10**6) / 100, random_.choice(currencies)
            said = partial(numbers.format_currency, amount, currency, format_type="name")
        elif kind == 2:
            span, unit = random_.randrange(2, 60), random_.choice(lengths)
            days = timedelta(days=span * DAYS[unit]) if unit in DAYS else timedelta(**{f"{unit}s": span})
            days = days if random_.random() < 0.5 else -days
            said = partial(dates.format_timedelta, days, granularity=unit, threshold=10**6, add_direction=True)
        else:
            amount, unit = random_.randrange(1, 5000) / random_.choice([1, 10]), random_.choice(measures)
            said = partial(units.format_unit, amount, unit, "long")
        return said(locale=one), said(locale=other)

    found = dict.fromkeys(names)
    while len(found) < rows:
        found[pair()] = None
    pairs = list(found)
    random_.shuffle(pairs)
    return [{source: a, target: b} for a, b in pairs]


def country_questions(*, seed: int = 0) -> list[Row]:
    """SQuAD-like rows {"question", "context", "answers", ...} over what CLDR knows of countries.

    A context speaks of one country: its languages, its currency, the first day of its week, its code. A tenth of the
    questions asks what the context does not say.
    """
    import babel
    from babel import languages, localedata, numbers

    english, random_ = babel.Locale("en"), random.Random(seed)
    days = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
    rows: list[Row] = []
    codes = sorted(map(str, english.territories))
    countries = [key for key in codes if len(key) == 2 and key.isalpha() and key not in ("EU", "EZ", "UN", "ZZ")]
    for code in countries:
        name = english.territories[code]
        tongues = (english.languages.get(key.split("_")[0]) for key in languages.get_official_languages(code))
        money = (english.currencies.get(key) for key in numbers.get_territory_currencies(code))
        try:
            day = days[babel.Locale("und", code).first_week_day]
        except Exception:  # CLDR has no such locale
            there = f"en_{code}" in localedata.locale_identifiers()
            day = days[babel.Locale.parse(f"en_{code}").first_week_day] if there else None
        letters = str(sum(map(str.isalpha, name)))
        facts = [
            (
                f"People in {name} speak ",
                next(tongues, ""),
                " in offices and schools.",
                "Which language is official in",
            ),
            ("Things are paid for in ", next(money, ""), ".", "What is the currency of"),
            ("A week begins on ", day, ".", "On which day does the week begin in"),
            ("Its code on parcels and websites is ", code, ".", "What is the code of"),
            ("Its name has ", letters, " letters.", "How many letters has the name"),
        ]
        facts = [(before, answer, after, f"{asks} {name}?") for before, answer, after, asks in facts if answer]
        for _ in range(3):
            chosen = random_.sample(facts, k=min(len(facts), random_.randint(2, 4)))
            context, places = f"This is about {name}.", []
            for before, answer, after, asked in chosen:
                places.append((asked, answer, len(context) + 1 + len(before)))
                context += f" {before}{answer}{after}"
            for asked, answer, start in places:
                rows.append(
                    {"question": asked, "context": context, "answers": {"text": [answer], "answer_start": [start]}}
                )
            if random_.random() < 0.4 and len(chosen) < len(facts):
                missing = random_.choice([fact for fact in facts if fact not in chosen])
                rows.append({"question": missing[3], "context": context, "answers": {"text": [], "answer_start": []}})
    return [row | {"id": f"{i}"} for i, row in enumerate(rows)]
