"""Words that say facts of a product, in English, Chinese and Japanese, each under one name for all languages.

colours, conditions, materials    the name first, then what says it; "black" and "黑色" are one colour
brands                            well-known ones, that a model may invent where the catalogue has none of them
"""

import re

__all__ = ["BRANDS", "COLOURS", "CONDITIONS", "MATERIALS", "UNITS"]


def _table(text: str) -> dict[str, str]:
    """Word in lower case -> its name."""
    found = {}
    for line in text.strip().splitlines():
        words = [word.strip().lower() for word in re.split(r"[|,]", line)]
        found |= dict.fromkeys(words, words[0])
    return found


COLOURS = _table("""
black | 黑色, 黑, 黒, ブラック
white | 白色, 白, ホワイト
red | 红色, 红, 赤, レッド
blue | 蓝色, 蓝, 青, ブルー
green | 绿色, 绿, 緑, グリーン
brown | 棕色, 褐色, 棕, 茶色, ブラウン
yellow | 黄色, 黄, イエロー
pink | 粉色, 粉红色, ピンク
purple | 紫色, 紫, violet, パープル
orange | 橙色, 橘色, オレンジ
grey | gray, 灰色, 灰, グレー
silver | 银色, シルバー
golden | 金色, ゴールド
beige | 米色, ベージュ
navy | 藏青色, 深蓝色, ネイビー
turquoise | 青绿色
""")
CONDITIONS = _table("""
new | brand new, new with tags, factory new, unused, never used, never worn, unopened
new | 全新, 全新未使用, 未拆封, 新品, 未使用
like new | almost new, nearly new, as good as new, 几乎全新, 近乎全新, 九成新, 未使用に近い
good | in good condition, good condition, good used condition, gently used, lightly used
good | 状态良好, 成色良好, 良い状態, 美品
fair | in fair condition, fair condition, some wear, 一般成色, やや傷や汚れあり
poor | in poor condition, poor condition, well used, heavily used, heavily worn, for parts
poor | 使用痕迹明显, 使用感あり, 状態が悪い
refurbished | 翻新, 整備済み
""")
MATERIALS = _table("""
leather | 皮革, 真皮, 牛皮, レザー
suede | 麂皮, スエード
canvas | 帆布, キャンバス
nylon | 尼龙, ナイロン
cotton | 棉布, 纯棉, 綿, コットン
wool | 羊毛, ウール
silk | 真丝, 丝绸, シルク
linen | 亚麻, リネン
denim | 牛仔布, デニム
cashmere | 羊绒, カシミヤ
polyester | 聚酯纤维, 涤纶, ポリエステル
straw | 草编, ストロー
aluminium | aluminum, 铝合金, アルミ
stainless steel | 不锈钢, ステンレス
steel | 钢, スチール
titanium | 钛合金, チタン
carbon | carbon fibre, carbon fiber, 碳纤维, カーボン
ceramic | porcelain, 陶瓷, 陶器
wood | wooden, 木头, 实木, 木製
bamboo | 竹制
plastic | 塑料, プラスチック
rubber | 橡胶, ラバー
velvet | 天鹅绒, ベルベット
marble | 大理石
crystal | 水晶
diamond | 钻石
""")
BRANDS = _table("""
nike | 耐克, ナイキ
adidas | 阿迪达斯, アディダス
puma | 彪马
gucci | 古驰, グッチ
prada | 普拉达, プラダ
chanel | 香奈儿, シャネル
hermes | hermès, 爱马仕, エルメス
louis vuitton | 路易威登, ルイヴィトン
dior | 迪奥, ディオール
burberry | 巴宝莉
rolex | 劳力士
apple iphone | iphone, ipad, macbook, 苹果手机
samsung | 三星
sony | 索尼, ソニー
huawei | 华为
xiaomi | 小米手机
lego | 乐高, レゴ
disney | 迪士尼, ディズニー
nintendo | 任天堂
ikea | 宜家
zara | ザラ
uniqlo | 优衣库, ユニクロ
levi's | levis, 李维斯
new balance | 新百伦, ニューバランス
lululemon | 露露乐蒙
michael kors | 迈克高仕
kate spade | ケイトスペード
the north face | 北面, ノースフェイス
patagonia | 巴塔哥尼亚
estee lauder | estée lauder, 雅诗兰黛
lancome | lancôme, 兰蔻
""")
UNITS = "dollars?|bucks|usd|eur|euros?|gbp|pounds|yen|yuan|rmb|cny|jpy|美元|美金|人民币|日元|欧元|元|块|円|ドル|ユーロ"
