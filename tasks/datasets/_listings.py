"""Made-up marketplace listings in English, Chinese and Japanese: a small grammar that a language model can learn.

A listing has a category; its thing, material, part and use belong to the category, the sentence about its state to its
condition, and the price to both. So a masked word can be told from the rest of the listing, and the category from the
text. The lexicon and the sentences are ours. Every choice is a hash of the seed, the listing and the choice's name:
the same numbers give the same bytes on any machine.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b

__all__ = [
    "CATEGORIES",
    "COLOURS",
    "CONDITIONS",
    "LANGUAGES",
    "LICENCE",
    "Listing",
    "ListingError",
    "check_languages",
    "draw",
    "texts_of_items",
]

LICENCE = "CC0-1.0"  # made here
LANGUAGES = ("en", "zh", "ja")  # in the order of their words below
LEXICON = """
shoes | 鞋子 | 靴
  things: sneakers 运动鞋 スニーカー, boots 靴子 ブーツ, sandals 凉鞋 サンダル, heels 高跟鞋 ヒール
  materials: leather 皮革 レザー, suede 麂皮 スエード, canvas 帆布 キャンバス
  parts: soles 鞋底 ソール, laces 鞋带 靴紐, insoles 鞋垫 中敷き
  uses: running 跑步 ランニング, walking 散步 散歩, parties 聚会 パーティー
  price: 45
bags | 包 | バッグ
  things: tote 托特包 トートバッグ, backpack 双肩包 リュック, clutch 手拿包 クラッチ, satchel 剑桥包 サッチェル
  materials: leather 皮革 レザー, nylon 尼龙 ナイロン, straw 草编 ストロー
  parts: strap 肩带 ストラップ, zipper 拉链 ファスナー, lining 内衬 裏地
  uses: travel 旅行 旅行, school 上学 通学, shopping 购物 買い物
  price: 60
phones | 手机 | 携帯電話
  things: smartphone 智能手机 スマートフォン, tablet 平板电脑 タブレット, charger 充电器 充電器, radio 收音机 ラジオ
  materials: aluminium 铝 アルミ, glass 玻璃 ガラス, plastic 塑料 プラスチック
  parts: screen 屏幕 画面, battery 电池 バッテリー, camera 摄像头 カメラ
  uses: calls 打电话 通話, games 玩游戏 ゲーム, photos 拍照 写真
  price: 180
books | 书 | 本
  things: novel 小说 小説, cookbook 食谱 料理本, comic 漫画 漫画, textbook 课本 教科書
  materials: hardcover 精装 ハードカバー, paperback 平装 ペーパーバック
  parts: cover 封面 表紙, spine 书脊 背表紙, pages 书页 ページ
  uses: reading 阅读 読書, studying 学习 勉強, gifts 送礼 贈り物
  price: 12
toys | 玩具 | おもちゃ
  things: puzzle 拼图 パズル, doll 娃娃 人形, train 火车 電車, plush 毛绒玩具 ぬいぐるみ
  materials: wood 木头 木, cotton 棉布 綿, plastic 塑料 プラスチック
  parts: box 盒子 箱, wheels 轮子 車輪, label 标签 ラベル
  uses: birthdays 生日 誕生日, collecting 收藏 コレクション, playtime 玩耍 遊び
  price: 20
kitchen | 厨房用品 | キッチン用品
  things: teapot 茶壶 急須, skillet 平底锅 フライパン, knife 菜刀 包丁, mug 马克杯 マグカップ
  materials: steel 钢 スチール, ceramic 陶瓷 陶器, iron 铁 鉄
  parts: handle 把手 取っ手, lid 盖子 蓋, rim 边缘 縁
  uses: cooking 做饭 料理, baking 烘焙 製菓, breakfast 早餐 朝食
  price: 25
beauty | 美妆 | コスメ
  things: lipstick 口红 口紅, serum 精华液 美容液, perfume 香水 香水, palette 眼影盘 パレット
  materials: rose 玫瑰 ローズ, vanilla 香草 バニラ, citrus 柑橘 シトラス
  parts: cap 瓶盖 キャップ, bottle 瓶子 ボトル, seal 封口 シール
  uses: weddings 婚礼 結婚式, evenings 晚上 夜, summer 夏天 夏
  price: 30
sports | 运动用品 | スポーツ用品
  things: tent 帐篷 テント, racket 球拍 ラケット, helmet 头盔 ヘルメット, dumbbell 哑铃 ダンベル
  materials: carbon 碳纤维 カーボン, rubber 橡胶 ゴム, polyester 聚酯纤维 ポリエステル
  parts: grip 握把 グリップ, buckle 扣子 バックル, frame 框架 フレーム
  uses: camping 露营 キャンプ, training 训练 トレーニング, climbing 攀岩 登山
  price: 70
"""
CONDITIONS = (  # words, factor of the price, and what is said of a part, in three languages
    ("brand new", 1.0, "全新", "新品", "still has its tags", "吊牌还在", "タグ付きです"),
    ("like new", 0.8, "几乎全新", "未使用に近い", "shows no wear at all", "没有任何磨损", "傷がありません"),
    ("in good condition", 0.6, "状态良好", "良い状態", "has a few light marks", "有几处轻微痕迹", "少し跡があります"),
    (
        "well used",
        0.35,
        "使用痕迹明显",
        "使用感あり",
        "is worn and a little loose",
        "磨损并且有点松",
        "すり減って緩いです",
    ),
)
COLOURS = ("black 黑色 黒", "white 白色 白", "blue 蓝色 青", "red 红色 赤", "green 绿色 緑", "brown 棕色 茶色")
BRANDS = ("Albora", "Canova", "Dorine", "Elkeri", "Haluma", "Kestro", "Lumivo", "Norada", "Pavelo", "Tarwyn")
PLACES = (
    "Boston 波士顿 ボストン",
    "Denver 丹佛 デンバー",
    "Tokyo 东京 東京",
    "Osaka 大阪 大阪",
    "Seattle 西雅图 シアトル",
)
WHEN = ("last spring", "two years ago", "in May", "before we moved", "for my sister")
HAGGLE = ("and I am open to offers", "and the price is firm", "shipping included", "or best offer")


class ListingError(ValueError):
    """Listings cannot be made with these settings."""


def check_languages(languages: Iterable[str]):
    """The languages as they are, if listings have them.

    Raises:
        ListingError: none, or one that they do not have.
    """
    if not languages or (unknown := [name for name in languages if name not in LANGUAGES]):
        told = ", ".join(map(str, unknown)) if languages else "none"
        raise ListingError(f"languages has {told}; made-up listings come in {', '.join(LANGUAGES)}")
    return languages


def draw(count: int, *what) -> int:
    """A number in 0..count - 1 that follows from `what`, evenly spread."""
    return int.from_bytes(blake2b("/".join(map(str, what)).encode(), digest_size=8).digest()) % count


def _lexicon() -> dict[str, dict]:
    found, entry = {}, {}
    for line in LEXICON.strip().splitlines():
        if line[0] != " ":
            names = [name.strip() for name in line.split("|")]
            entry = found[names[0]] = {"names": names}
        else:
            key, _, words = line.strip().partition(": ")
            entry[key] = [word.split() for word in words.split(", ")] if key != "price" else int(words)
    return found


CATEGORIES = _lexicon()


@dataclass(frozen=True)
class Listing:
    """Listing `number` of a seed; its words come in English, Chinese and Japanese (0, 1, 2)."""

    seed: int
    number: int

    @cached_property
    def category(self) -> str:
        return self._of("category", tuple(CATEGORIES))

    @cached_property
    def words(self) -> dict[str, list[str]]:
        """thing, material, part, use, colour, place: each in three languages."""
        lexicon = CATEGORIES[self.category]
        found = {key: self._of(key, lexicon[f"{key}s"]) for key in ("thing", "material", "part", "use")}
        return found | {"colour": self._of("colour", COLOURS).split(), "place": self._of("place", PLACES).split()}

    @cached_property
    def condition(self) -> tuple:
        return self._of("condition", CONDITIONS)

    @cached_property
    def brand(self) -> str:
        return self._of("brand", BRANDS)

    @cached_property
    def price(self) -> int:
        """Dollars: the category's, by the condition, give or take a fifth."""
        return max(
            1, round(CATEGORIES[self.category]["price"] * self.condition[1] * (80 + self._draw(41, "price")) / 100)
        )

    @cached_property
    def days(self) -> int:
        return 2 + self._draw(5, "days")

    def title(self, language: str = "en") -> str:
        colour, material, thing = (self.words[key][_place(language)] for key in ("colour", "material", "thing"))
        if language == "zh":
            return f"{self.brand}{colour}{material}{thing} {self.condition[2]}"
        if language == "ja":
            return f"{self.brand} {colour}の{material}{thing} {self.condition[3]}"
        return f"{self.brand} {colour} {material} {thing}, {self.condition[0]}"

    def description(self, language: str = "en") -> list[str]:
        """Three to six sentences."""
        sentences = {"en": self._english, "zh": self._chinese, "ja": self._japanese}[language]()
        kept = [s for index, s in enumerate(sentences) if index < 2 or self._draw(4, "kept", index)]
        return kept if len(kept) > 2 else sentences

    def _english(self) -> list[str]:
        word = {key: value[0] for key, value in self.words.items()}
        return [
            f"I am selling my {word['colour']} {word['thing']} from {self.brand}.",
            f"The {word['material']} {word['thing']} would be great for {word['use']}.",
            f"I bought it {self._of('when', WHEN)} and it is {self.condition[0]}.",
            f"The {word['part']} {self.condition[4]}.",
            f"It ships from {word['place'].title()} within {self.days} days.",
            f"I ask {self.price} dollars for the {word['thing']}, {self._of('haggle', HAGGLE)}.",
        ]

    def _chinese(self) -> list[str]:
        word = {key: value[1] for key, value in self.words.items()}
        return [
            f"出售我的{self.brand}{word['colour']}{word['thing']}。",
            f"这款{word['material']}{word['thing']}很适合{word['use']}。",
            f"商品{self.condition[2]}。",
            f"{word['part']}{self.condition[5]}。",
            f"{self.days}天内从{word['place']}发货。",
            f"{word['thing']}的价格是{self.price}美元。",
        ]

    def _japanese(self) -> list[str]:
        word = {key: value[2] for key, value in self.words.items()}
        return [
            f"{self.brand}の{word['colour']}い{word['thing']}を売ります。"
            if word["colour"] in "黒白青赤"
            else f"{self.brand}の{word['colour']}の{word['thing']}を売ります。",
            f"この{word['material']}の{word['thing']}は{word['use']}にぴったりです。",
            f"商品は{self.condition[3]}です。",
            f"{word['part']}は{self.condition[6]}。",
            f"{word['place']}から{self.days}日以内に発送します。",
            f"{word['thing']}の価格は{self.price}ドルです。",
        ]

    def _of(self, what: str, choices: Sequence):
        return choices[self._draw(len(choices), what)]

    def _draw(self, count: int, *what) -> int:
        return draw(count, self.seed, self.number, *what)


def texts_of_items(count: int, seed: int) -> list:
    """`count` items of the synthetic marketplace of that seed, with the same title() and description() as listings."""
    from tasks.datasets._sample_texts import ItemTexts  # imports this module
    from tasks.datasets.sample import items

    return [ItemTexts(row) for row in items(count, seed=seed).iter_rows(named=True)]


def _place(language: str) -> int:
    return LANGUAGES.index(language)
