"""Everyday whys with a short true answer, and the words of which no good answer lacks one."""

# the question after "Why", the answer in two sentences, alternatives of which one is needed
WHYS = (
    (
        "do we see lightning before we hear thunder",
        "Light travels far faster than sound.",
        "The flash reaches us almost at once, while the bang needs about three seconds for each kilometre.",
        ["faster", "speed"],
    ),
    (
        "does ice float on water",
        "Water expands when it freezes, so ice is less dense than the water around it.",
        "That is why the ice stays on top.",
        ["dense", "density"],
    ),
    (
        "do leaves turn yellow in autumn",
        "In autumn trees break down the green chlorophyll in their leaves.",
        "The yellow pigments that were there all along then become visible.",
        ["chlorophyll"],
    ),
    (
        "do we have leap years",
        "The Earth needs almost a quarter of a day more than 365 days to go round the Sun.",
        "An extra day every four years makes up for it.",
        ["quarter", "365", "extra day"],
    ),
    (
        "is the sky blue by day",
        "Air scatters the short blue waves of sunlight more than the long red ones.",
        "So blue light reaches us from every side.",
        ["scatter", "scatters"],
    ),
    (
        "does bread rise",
        "Yeast eats the sugar in the dough and gives off gas.",
        "The gas makes bubbles, and these push the dough up.",
        ["yeast"],
    ),
    (
        "do we put salt on icy roads",
        "Salt water freezes at a lower temperature than pure water.",
        "So the ice on the road melts although it is still cold.",
        ["lower", "freezing point"],
    ),
    (
        "do onions make us cry",
        "Cutting an onion sets free a gas that stings the eyes.",
        "The eyes make tears to wash it out.",
        ["gas", "sulfur", "sulphur", "irritates"],
    ),
    (
        "does the Moon change its shape",
        "The Moon itself stays the same.",
        "As it goes round the Earth, we see more or less of the half that is lit by the Sun.",
        ["lit", "sunlight", "phases", "illuminated"],
    ),
    (
        "do cats' eyes shine at night",
        "Behind the retina cats have a layer that works like a mirror.",
        "It sends light back, which helps them see in the dark.",
        ["reflect", "reflects", "mirror", "tapetum"],
    ),
    (
        "does a metal spoon feel colder than a wooden one",
        "Metal carries heat away from the hand much faster than wood does.",
        "Both spoons have the same temperature, but we feel the loss of heat.",
        ["heat", "conducts", "conductor"],
    ),
    (
        "do our ears pop on a plane",
        "The air pressure in the cabin changes faster than the pressure behind the eardrum.",
        "The pop comes when the two become equal.",
        ["pressure"],
    ),
    (
        "do we shiver when we are cold",
        "Shivering means that muscles tighten and relax quickly.",
        "This work produces heat and keeps the body warm.",
        ["heat", "warm", "warmth"],
    ),
    (
        "is the sea salty",
        "Rivers carry salts out of rocks into the sea.",
        "The water evaporates again, but the salts stay behind.",
        ["rocks", "rivers", "minerals"],
    ),
    (
        "do magnets stick to a fridge",
        "The door contains steel, and steel is pulled by magnets.",
        "A door of plain plastic or wood would not hold them.",
        ["steel", "iron"],
    ),
    (
        "do we wear light clothes in summer",
        "Light colours throw back much of the sunlight, while dark ones take it in.",
        "So white clothes stay cooler.",
        ["reflect", "throw back", "cooler", "absorb"],
    ),
    (
        "do bees visit flowers",
        "Bees collect nectar and pollen as food for themselves and their young.",
        "On the way they carry pollen from flower to flower.",
        ["nectar", "pollen"],
    ),
    (
        "does the Sun set in the west",
        "The Earth turns from west to east once a day.",
        "To us it therefore looks as if the Sun moved towards the west.",
        ["turns", "rotates", "rotation", "spins"],
    ),
    (
        "do we blink",
        "Each blink spreads a thin film of tears over the eye.",
        "That keeps the eye moist and washes dust away.",
        ["moist", "tears", "dry", "dust"],
    ),
    (
        "do tyres have grooves",
        "The grooves lead rain water away from under the tyre.",
        "Without them the car would slide on a film of water.",
        ["water", "grip"],
    ),
)
WHYS_ZH = (
    ("冰会浮在水面上", "水结冰时体积变大，密度变小，所以冰会浮起来。", ["密度"]),
    ("先看到闪电后听到雷声", "光比声音跑得快得多，所以我们先看到闪电。", ["快"]),
    ("海水是咸的", "河流把岩石里的盐带进海里，水蒸发后盐留了下来。", ["盐"]),
    ("切洋葱会流泪", "洋葱切开后会放出刺激性气体，眼睛就用泪水把它冲走。", ["气体", "刺激"]),
    ("面包会膨胀", "酵母在面团里产生气体，气泡把面团撑大了。", ["酵母", "气体"]),
    ("人冷的时候会发抖", "发抖时肌肉快速收缩，可以产生热量，让身体变暖。", ["热"]),
    ("夏天适合穿白色衣服", "白色能反射大部分阳光，所以穿着更凉快。", ["反射"]),
    ("蜜蜂喜欢花", "蜜蜂要从花里采花蜜和花粉当食物。", ["花蜜", "花粉", "蜜"]),
    ("月亮会有圆缺", "月亮绕地球转，我们看到的被太阳照亮的部分不断变化。", ["照亮", "阳光"]),
    ("坐飞机时耳朵会疼", "飞机升降时气压变化很快，耳朵内外的气压不相等。", ["气压", "压力"]),
)
