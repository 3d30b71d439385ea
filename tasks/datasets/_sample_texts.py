"""The listings of the synthetic marketplace as texts in English, Chinese and Japanese.

A title has the words of the item's name in the log; a description says its facts: what the log has in columns. The
same item says the same in every language. The words are ours.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from tasks.datasets._listings import LANGUAGES
from tasks.datasets.sample import CONDITION_WORDS, CONDITIONS

__all__ = ["ItemTexts"]

NOUNS = """
sneakers 运动鞋 スニーカー, boots 靴子 ブーツ, heels 高跟鞋 ヒール, sandals 凉鞋 サンダル,
flats 平底鞋 フラットシューズ, loafers 乐福鞋 ローファー, totes 托特包 トートバッグ,
crossbody 斜挎包 ショルダーバッグ, satchels 剑桥包 サッチェルバッグ, clutches 手拿包 クラッチバッグ,
backpacks 双肩包 リュック, tees T恤 Tシャツ, blouses 女衬衫 ブラウス, tanks 背心 タンクトップ,
tunics 束腰上衣 チュニック, maxi 长裙 マキシワンピース, midi 中长裙 ミディワンピース, mini 短裙 ミニワンピース,
gowns 礼服 ドレス, necklaces 项链 ネックレス, rings 戒指 指輪, earrings 耳环 イヤリング, bracelets 手链 ブレスレット,
singles 单卡 シングルカード, packs 组合包 パック, boxes 卡盒 カードボックス, binders 卡册 カードバインダー,
statues 雕像 スタチュー, plush 毛绒玩具 ぬいぐるみ, figurines 手办 フィギュア, minifigures 迷你人偶 ミニフィギュア,
boardgames 桌游 ボードゲーム, puzzles 拼图 パズル, dice 骰子 サイコロ, miniatures 微缩模型 ミニチュア,
sets 套装 セット, bricks 积木 ブロック, kits 套件 キット, dolls 娃娃 人形, dollhouses 娃娃屋 ドールハウス,
outfits 娃娃服装 ドール服, diecast 合金车 ミニカー, trains 火车 電車, planes 飞机 飛行機, beads 珠子 ビーズ,
slime 史莱姆 スライム, trainers 男运动鞋 トレーナーシューズ, oxfords 牛津鞋 オックスフォード,
slides 拖鞋 スライドサンダル, hikers 登山鞋 登山靴, hoodies 连帽衫 パーカー, polos 马球衫 ポロシャツ,
shirts 衬衫 シャツ, jerseys 球衣 ジャージ, slim 修身牛仔裤 スリムジーンズ, straight 直筒牛仔裤 ストレートジーンズ,
relaxed 宽松牛仔裤 ゆったりジーンズ, belts 腰带 ベルト, wallets 钱包 財布, watches 手表 腕時計, caps 棒球帽 キャップ,
smartphones 智能手机 スマートフォン, cases 手机壳 スマホケース, chargers 充电器 充電器, consoles 游戏机 ゲーム機,
cartridges 游戏卡带 ゲームソフト, controllers 手柄 コントローラー, headphones 耳机 ヘッドホン,
speakers 音箱 スピーカー, turntables 唱机 ターンテーブル, laptops 笔记本电脑 ノートパソコン,
keyboards 键盘 キーボード, tablets 平板电脑 タブレット, cookware 炊具 調理器具, mugs 马克杯 マグカップ,
knives 刀具 包丁, gadgets 厨房小工具 キッチン小物, candles 蜡烛 キャンドル, prints 装饰画 アートプリント,
vases 花瓶 花瓶, quilts 被子 キルト, sheets 床单 シーツ, pillows 枕头 枕, palettes 眼影盘 パレット,
lipsticks 口红 口紅, brushes 化妆刷 メイクブラシ, serums 精华液 美容液, masks 面膜 フェイスマスク,
creams 面霜 クリーム, perfumes 香水 香水, mists 身体喷雾 ボディミスト, leggings 打底裤 レギンス,
skirts 半身裙 スカート, tutus 蓬蓬裙 チュチュ, joggers 运动裤 ジョガーパンツ, shorts 短裤 ショートパンツ,
jackets 夹克 ジャケット, onesies 连体衣 ロンパース, bibs 围嘴 よだれかけ, blankets 毯子 ブランケット,
tumblers 平底杯 タンブラー, bowls 玻璃碗 ボウル, postcards 明信片 ポストカード, maps 地图 地図, stamps 邮票 切手,
silver 银币 銀貨, copper 铜币 銅貨, weights 哑铃 ダンベル, mats 瑜伽垫 ヨガマット, bands 弹力带 トレーニングバンド,
tents 帐篷 テント, lanterns 露营灯 ランタン, drivers 一号木杆 ドライバー, putters 推杆 パター, scarves 围巾 マフラー,
beanies 毛线帽 ニット帽, decals 贴纸 デカール, soy 大豆蜡烛 ソイキャンドル, beeswax 蜂蜡蜡烛 蜜蝋キャンドル,
novels 小说 小説, comics 漫画 漫画, textbooks 课本 教科書, cookbooks 食谱 料理本, vinyl 黑胶唱片 レコード,
cassettes 磁带 カセット, collars 项圈 首輪, leashes 牵引绳 リード, trees 猫爬架 キャットタワー,
toys 猫玩具 猫のおもちゃ, filters 过滤器 フィルター, plants 水草 水草
"""
STYLES = """
classic 经典 クラシック, sporty 运动风 スポーティー, boho 波西米亚风 ボヘミアン, minimal 简约 シンプル,
vintage 复古 ビンテージ, glam 华丽 グラマラス, street 街头风 ストリート, cosy 温馨 ほっこり
"""
DETAILS = """
rare 稀有 レア, bundle 打包 まとめ売り, nwt 带吊牌 タグ付き, authentic 正品 正規品, limited 限量 限定,
soft 柔软 柔らかい, mini 迷你 ミニ, large 大号 大きめ, handpicked 精选 厳選, gift 送礼 ギフト, everyday 日常 普段使い,
signed 签名 サイン入り, retro 怀旧 レトロ, pair 一双 ペア, set 成套 セット, lot 一批 ロット
"""
COLORS = """
black 黑色 黒, white 白色 白, blue 蓝色 青, pink 粉色 ピンク, red 红色 赤, green 绿色 緑, gray 灰色 グレー,
brown 棕色 茶色, purple 紫色 紫, beige 米色 ベージュ, gold 金色 ゴールド, orange 橙色 オレンジ
"""
CONDITION = dict(zip(CONDITIONS, zip(CONDITION_WORDS, ("全新带吊牌", "几乎全新", "状态良好", "有使用痕迹", "仅供零件"),
                                     ("タグ付き新品", "未使用に近い", "良い状態", "使用感あり", "部品用"), strict=True),
                     strict=True))  # fmt: skip
DEPARTMENTS = (
    "Women|女士|レディース", "Toys & Collectibles|玩具与收藏|おもちゃ・コレクション", "Men|男士|メンズ",
    "Electronics|电子产品|家電", "Home|家居|インテリア", "Beauty|美妆|コスメ", "Kids|儿童|キッズ",
    "Vintage & antiques|古董|アンティーク", "Sports & outdoors|运动户外|スポーツ・アウトドア",
    "Handmade|手工制品|ハンドメイド", "Books|图书|本", "Pets|宠物|ペット",
)  # fmt: skip
SAID = {  # sentences of a description: fact -> words, in each language
    "noun": ("I am selling {style} {noun}.", "出售{style}{noun}。", "{style}の{noun}を売ります。"),
    "brand": ("The brand is {brand}.", "品牌是{brand}。", "ブランドは{brand}です。"),
    "color": ("The colour is {color}.", "颜色是{color}。", "色は{color}です。"),
    "size": ("The size is {size}.", "尺码是{size}。", "サイズは{size}です。"),
    "condition": ("Condition: {condition}.", "状态：{condition}。", "状態：{condition}。"),
    "department": ("More like it: {department}.", "同类商品：{department}。", "似た商品：{department}。"),
    "shipper": ("The {shipper} pays for shipping.", "运费由{shipper}承担。", "送料は{shipper}が負担します。"),
    "price": ("I ask {price} dollars.", "价格是{price}美元。", "価格は{price}ドルです。"),
}  # fmt: skip
SHIPPERS = {"Buyer": ("buyer", "买家", "購入者"), "Seller": ("seller", "卖家", "出品者")}


def _table(words: str) -> dict[str, tuple[str, ...]]:
    found = [tuple(entry.split()) for entry in words.replace("\n", " ").split(",")]
    return {entry[0]: entry for entry in found}


WORDS = {
    name: _table(words) for name, words in (("noun", NOUNS), ("style", STYLES), ("detail", DETAILS), ("color", COLORS))
}
DEPARTMENT = {entry.split("|")[0]: tuple(entry.split("|")) for entry in DEPARTMENTS}


@dataclass(frozen=True)
class ItemTexts:
    """Title and description of one item: a row of `tasks.datasets.sample.items`."""

    row: Mapping

    def title(self, language: str = "en") -> str:
        """In English the item's name in the log."""
        if language == "en":
            return self.row["name"]
        place = LANGUAGES.index(language)
        word = {name: table[self.row[name]][place] for name, table in WORDS.items() if self.row[name]}
        condition = CONDITION[self.row["item_condition_name"]][place]
        brand = self.row["brand_name"] or ""
        if language == "zh":
            return f"{brand}{word['style']}{word['noun']} {word['detail']} {condition}"
        return f"{brand} {word['style']}{word['noun']} {word['detail']} {condition}".strip()

    def description(self, language: str = "en") -> list[str]:
        """A sentence for each fact that the item has."""
        place, row = LANGUAGES.index(language), self.row
        facts = {name: table[row[name]][place] for name, table in WORDS.items() if row[name]}
        facts |= {"condition": CONDITION[row["item_condition_name"]][place], "price": f"{row['price']:g}"}
        facts |= {"department": DEPARTMENT[row["c0_name"]][place], "shipper": SHIPPERS[row["shipper_name"]][place]}
        facts |= {name: row[column] for name, column in (("brand", "brand_name"), ("size", "size_name")) if row[column]}
        return [said[place].format(**facts) for name, said in SAID.items() if name in facts]
