"""The sentiment demo: opinions in English and Chinese, put together from phrases that were written for this project.

They are made up, and easier than what people write: good for seeing a run from end to end, not for comparing models.
"""

import random

THINGS = {
    "film": ("the plot", "the acting", "the ending", "the music", "the first half", "the dialogue"),
    "hotel": ("the room", "the breakfast", "the bed", "the staff", "the view", "the bathroom"),
    "restaurant": ("the soup", "the service", "the dessert", "the menu", "the waiter", "the main course"),
    "phone": ("the battery", "the screen", "the camera", "the keyboard", "the speaker", "the packaging"),
    "book": ("the first chapter", "the translation", "the hero", "the style", "the index", "the story"),
    "course": ("the teacher", "the homework", "the pace", "the handout", "the final exam", "the reading list"),
}
GOOD = (
    "was a delight", "was far better than I had hoped", "was excellent", "was not bad at all", "won me over at once",
    "was done with care", "was worth every penny", "could hardly be better", "was warm and honest", "never failed us",
    "was a pleasant surprise", "was simply lovely", "deserves praise", "was spotless", "left nothing to be desired",
    "made us smile", "was clear and quick", "kept its promise", "was the best I have seen", "was full of good ideas",
)  # fmt: skip
BAD = (
    "was a mess", "was far worse than I had feared", "was dreadful", "was not good at all", "lost me at once",
    "was done without care", "was not worth a penny", "could hardly be worse", "was cold and rude", "failed us twice",
    "was a sad surprise", "was simply ugly", "deserves a complaint", "was filthy", "left a lot to be desired",
    "made us groan", "was muddled and slow", "broke its promise", "was the worst I have seen", "was short of ideas",
)  # fmt: skip
PRAISE = (
    "I would come back tomorrow", "I recommend it to everyone", "five stars from me", "we were very happy with it",
    "I am glad we chose it", "on the whole a fine thing", "all in all I loved it", "I have nothing to complain about",
    "it was money well spent", "I keep thinking of it with joy", "my family enjoyed it too", "we will do it again",
)  # fmt: skip
BLAME = (
    "I would never come back", "I warn everyone against it", "one star from me", "we were very unhappy with it",
    "I am sorry we chose it", "on the whole a poor thing", "all in all I hated it", "I have nothing to praise",
    "it was money thrown away", "I keep thinking of it with anger", "my family disliked it too", "we want a refund",
)  # fmt: skip
OPENINGS = (
    "", "Last week we tried this {thing}.", "About the {thing}:", "I had heard of this {thing} from a friend.",
    "A short note on the {thing}.", "We took the {thing} on a rainy day.", "My second {thing} this year.",
    "It is a {thing} like many others.",
)  # fmt: skip

THINGS_ZH = {
    "电影": ("剧情", "演技", "结尾", "音乐", "前半段", "对白"),
    "酒店": ("房间", "早餐", "床", "服务员", "风景", "卫生间"),
    "餐厅": ("汤", "服务", "甜点", "菜单", "主菜", "环境"),
    "手机": ("电池", "屏幕", "相机", "键盘", "音质", "包装"),
    "书": ("第一章", "翻译", "主人公", "文笔", "排版", "故事"),
}
GOOD_ZH = (
    "非常出色", "比想象中好得多", "一点也不差", "让人一下子就喜欢上了", "做得很用心", "物超所值", "无可挑剔",
    "真诚又温暖", "从没让我们失望", "给人惊喜", "干净整洁", "值得称赞",
)  # fmt: skip
BAD_ZH = (
    "一团糟", "比想象中差得多", "一点也不好", "让人一下子就没了兴趣", "做得很马虎", "不值这个价", "到处是毛病",
    "冷漠又无礼", "两次让我们失望", "令人失望", "又脏又乱", "应该投诉",
)  # fmt: skip
PRAISE_ZH = (
    "下次还会再来", "推荐给大家", "给五星", "我们都很满意", "这钱花得值", "总的来说很喜欢", "没有什么可抱怨的",
)  # fmt: skip
BLAME_ZH = (
    "再也不会来了", "劝大家别选", "给一星", "我们都很不满意", "这钱白花了", "总的来说很讨厌", "没有什么可称赞的",
)  # fmt: skip
OPENINGS_ZH = ("", "上周试了这个{thing}。", "说说这个{thing}：", "朋友推荐的{thing}。", "今年第二次选这个{thing}。")


# One thing and the verdict; two things that agree; the verdict decides. {2} and {3} are what is said of {0} and {1}.
BODIES = ("{0} {2}, and {verdict}.", "{0} {2} and {1} {3}; {verdict}.", "{0} {2}, but {1} {3}, so {verdict}.")
BODIES_ZH = ("{0}{2}，{verdict}。", "{0}{2}，{1}也{3}，{verdict}。", "虽然{0}{2}，但是{1}{3}，{verdict}。")
ENGLISH = (THINGS, GOOD, BAD, PRAISE, BLAME, OPENINGS, BODIES)
CHINESE = (THINGS_ZH, GOOD_ZH, BAD_ZH, PRAISE_ZH, BLAME_ZH, OPENINGS_ZH, BODIES_ZH)


def opinions(rows: int = 2400, *, seed: int = 0) -> list[dict[str, str]]:
    """Rows of {"text", "label"}, two thirds English, as many positive as negative, none twice.

    A third is mixed: one clause says the opposite, and the verdict at the end decides.
    """
    random_ = random.Random(seed)
    found: dict[str, str] = {}
    while len(found) < rows:
        positive, english = len(found) % 2 == 0, len(found) % 3
        things, good, bad, praise, blame, openings, bodies = ENGLISH if english else CHINESE
        thing = random_.choice(list(things))
        pair = random_.sample(things[thing], 2)
        clause, opposite = (good, bad) if positive else (bad, good)
        verdict = random_.choice(praise if positive else blame)
        opening = random_.choice(openings).format(thing=thing)
        kind = random_.randrange(3)
        said = map(random_.choice, ((clause,), (clause, clause), (opposite, clause))[kind])
        body = bodies[kind].format(*pair, *said, verdict=verdict)
        text = f"{opening} {body[0].upper()}{body[1:]}".strip() if english else opening + body
        found.setdefault(text, "positive" if positive else "negative")
    return [{"text": text, "label": label} for text, label in found.items()]
