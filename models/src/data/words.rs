//! The word lists that the made data draws from.

/// Country and capital.
pub(super) const CAPITALS: &[(&str, &str)] = &[
    ("France", "Paris"), ("Germany", "Berlin"), ("Italy", "Rome"), ("Spain", "Madrid"), ("Portugal", "Lisbon"),
    ("Austria", "Vienna"), ("Switzerland", "Bern"), ("Belgium", "Brussels"), ("the Netherlands", "Amsterdam"),
    ("Luxembourg", "Luxembourg"), ("Ireland", "Dublin"), ("the United Kingdom", "London"), ("England", "London"), ("Scotland", "Edinburgh"),
    ("Wales", "Cardiff"), ("Norway", "Oslo"), ("Sweden", "Stockholm"), ("Finland", "Helsinki"), ("Denmark", "Copenhagen"),
    ("Iceland", "Reykjavik"), ("Estonia", "Tallinn"), ("Latvia", "Riga"), ("Lithuania", "Vilnius"), ("Poland", "Warsaw"),
    ("Czechia", "Prague"), ("Slovakia", "Bratislava"), ("Hungary", "Budapest"), ("Slovenia", "Ljubljana"),
    ("Croatia", "Zagreb"), ("Serbia", "Belgrade"), ("Romania", "Bucharest"), ("Bulgaria", "Sofia"), ("Greece", "Athens"),
    ("Albania", "Tirana"), ("Ukraine", "Kyiv"), ("Belarus", "Minsk"), ("Moldova", "Chisinau"), ("Russia", "Moscow"),
    ("Turkey", "Ankara"), ("Georgia", "Tbilisi"), ("Armenia", "Yerevan"), ("Azerbaijan", "Baku"), ("Cyprus", "Nicosia"),
    ("Malta", "Valletta"), ("Egypt", "Cairo"), ("Morocco", "Rabat"), ("Algeria", "Algiers"), ("Tunisia", "Tunis"),
    ("Libya", "Tripoli"), ("Sudan", "Khartoum"), ("Ethiopia", "Addis Ababa"), ("Kenya", "Nairobi"), ("Uganda", "Kampala"),
    ("Ghana", "Accra"), ("Nigeria", "Abuja"), ("Senegal", "Dakar"), ("Mali", "Bamako"), ("Angola", "Luanda"),
    ("Zambia", "Lusaka"), ("Zimbabwe", "Harare"), ("Namibia", "Windhoek"), ("Rwanda", "Kigali"), ("Israel", "Jerusalem"),
    ("Jordan", "Amman"), ("Lebanon", "Beirut"), ("Syria", "Damascus"), ("Iraq", "Baghdad"), ("Iran", "Tehran"),
    ("Saudi Arabia", "Riyadh"), ("Qatar", "Doha"), ("Oman", "Muscat"), ("Kuwait", "Kuwait City"), ("India", "New Delhi"),
    ("Pakistan", "Islamabad"), ("Nepal", "Kathmandu"), ("Bangladesh", "Dhaka"), ("China", "Beijing"), ("Japan", "Tokyo"),
    ("South Korea", "Seoul"), ("North Korea", "Pyongyang"), ("Mongolia", "Ulaanbaatar"), ("Vietnam", "Hanoi"),
    ("Thailand", "Bangkok"), ("Laos", "Vientiane"), ("Cambodia", "Phnom Penh"), ("Malaysia", "Kuala Lumpur"),
    ("Indonesia", "Jakarta"), ("the Philippines", "Manila"), ("Singapore", "Singapore"), ("Australia", "Canberra"),
    ("New Zealand", "Wellington"), ("Canada", "Ottawa"), ("the United States", "Washington"), ("Mexico", "Mexico City"),
    ("Cuba", "Havana"), ("Jamaica", "Kingston"), ("Panama", "Panama City"), ("Guatemala", "Guatemala City"),
    ("Brazil", "Brasilia"), ("Argentina", "Buenos Aires"), ("Chile", "Santiago"), ("Peru", "Lima"), ("Colombia", "Bogota"),
    ("Venezuela", "Caracas"), ("Ecuador", "Quito"), ("Uruguay", "Montevideo"), ("Paraguay", "Asuncion"),
];

/// Pairs that are each other's opposite; every word stands in one pair only.
pub(super) const OPPOSITES: &[(&str, &str)] = &[
    ("hot", "cold"), ("big", "small"), ("tall", "short"), ("fast", "slow"), ("happy", "sad"), ("light", "dark"),
    ("day", "night"), ("up", "down"), ("left", "right"), ("good", "bad"), ("rich", "poor"), ("full", "empty"),
    ("open", "closed"), ("wet", "dry"), ("hard", "soft"), ("early", "late"), ("old", "young"), ("loud", "quiet"),
    ("strong", "weak"), ("heavy", "weightless"), ("clean", "dirty"), ("near", "far"), ("high", "low"), ("thick", "thin"),
    ("wide", "narrow"), ("deep", "shallow"), ("sharp", "blunt"), ("smooth", "rough"), ("sweet", "sour"),
    ("true", "false"), ("first", "last"), ("begin", "end"), ("win", "lose"), ("buy", "sell"), ("push", "pull"),
    ("give", "take"), ("love", "hate"), ("laugh", "cry"), ("always", "never"), ("inside", "outside"), ("north", "south"),
    ("east", "west"), ("summer", "winter"), ("brave", "cowardly"), ("safe", "dangerous"), ("cheap", "expensive"),
    ("simple", "complex"), ("easy", "difficult"), ("alive", "dead"), ("awake", "asleep"), ("asking", "answering"),
    ("front", "back"), ("top", "bottom"), ("many", "few"), ("more", "less"), ("same", "different"), ("new", "used"),
    ("friend", "enemy"), ("war", "peace"), ("success", "failure"), ("question", "answer"), ("over", "under"),
    ("arrive", "depart"), ("remember", "forget"), ("increase", "decrease"), ("lost", "found"), ("noisy", "silent"),
    ("polite", "rude"), ("lazy", "diligent"), ("beautiful", "ugly"), ("public", "private"), ("accept", "refuse"),
    ("before", "after"), ("yes", "no"), ("on", "off"), ("straight", "crooked"), ("wise", "foolish"), ("kind", "cruel"),
    ("visible", "hidden"), ("guilty", "innocent"), ("ancient", "modern"), ("tight", "loose"), ("calm", "nervous"),
    ("rise", "fall"), ("import", "export"), ("maximum", "minimum"), ("plus", "minus"), ("horizontal", "vertical"),
];

/// First names.
pub(super) const NAMES: &[&str] = &[
    "Ana", "Ben", "Clara", "David", "Eva", "Felix", "Greta", "Hugo", "Ida", "Jonas", "Karla", "Leo", "Mia", "Noah", "Olga",
    "Paul", "Rosa", "Simon", "Tina", "Uma", "Viktor", "Wanda", "Yara", "Zoe", "Alice", "Bob", "Carlos", "Dora", "Emil",
    "Fiona", "Georg", "Hana", "Ivan", "Julia", "Kim", "Lara", "Max", "Nina", "Oskar", "Petra", "Robin", "Sara", "Tom",
    "Ursula", "Vera", "Walter", "Maria", "John", "Emma", "Lucas",
];

/// Things, animals and plain words to copy, list or ask about.
pub(super) const NOUNS: &[&str] = &[
    "apple", "pear", "plum", "banana", "orange", "lemon", "cherry", "bread", "butter", "cheese", "milk", "water", "tea",
    "coffee", "sugar", "salt", "cat", "dog", "horse", "cow", "sheep", "bird", "fish", "mouse", "lion", "tiger", "bear",
    "wolf", "house", "door", "window", "table", "chair", "lamp", "book", "paper", "pen", "letter", "phone", "clock", "car",
    "train", "boat", "plane", "bike", "road", "bridge", "river", "lake", "sea", "mountain", "forest", "tree", "flower",
    "garden", "field", "stone", "sand", "star", "moon", "sun", "cloud", "rain", "snow", "wind", "fire", "gold", "silver",
    "iron", "glass", "music", "song", "story", "game", "ball", "toy", "gift", "box", "bag", "shoe", "hat", "coat", "ring",
    "key", "coin", "city", "village", "school", "market", "kitchen", "castle", "tower", "island", "robot", "rocket",
    "planet", "ticket", "invoice", "token", "gateway", "server", "budget",
];

/// Describing words.
pub(super) const ADJECTIVES: &[&str] = &[
    "red", "blue", "green", "yellow", "black", "white", "brown", "pink", "purple", "grey", "little", "big", "old", "new",
    "quick", "slow", "quiet", "bright", "dark", "warm", "cold", "round", "tall", "tiny", "happy", "brave", "clever", "kind",
    "strange", "golden", "wooden", "heavy", "fresh", "lazy", "busy", "silent",
];

/// Doing words, third person.
pub(super) const VERBS: &[&str] = &[
    "sees", "likes", "finds", "wants", "buys", "carries", "paints", "follows", "hears", "opens", "brings", "needs", "keeps",
    "moves", "makes", "holds", "loves", "sells", "hides", "watches",
];

/// Colours.
pub(super) const COLOURS: &[&str] = &["red", "blue", "green", "yellow", "black", "white", "orange", "purple", "brown", "pink"];

/// What the model cannot speak about.
pub(super) const TOPICS: &[&str] = &[
    "quantum physics", "the French revolution", "the stock market", "black holes", "photosynthesis", "the Roman Empire",
    "chess openings", "machine learning", "jazz", "volcanoes", "the human heart", "football", "Shakespeare", "inflation",
    "electric cars", "the Bible", "climate change", "DNA", "bitcoin", "dinosaurs", "the second world war", "opera",
    "medicine", "philosophy", "wine", "taxes", "the internet", "satellites", "vaccines", "poetry", "databases", "compilers",
    "gravity", "the periodic table", "Mozart", "Einstein", "Napoleon", "yoga", "cooking", "architecture",
];

/// Syllables that make words nobody has seen.
pub(super) const SYLLABLES: &[&str] = &[
    "ba", "ke", "mi", "do", "lu", "ra", "ven", "tor", "sil", "gra", "po", "na", "zu", "fi", "mel", "dan", "kor", "tes", "wi",
    "lo", "han", "ber", "sto", "ri", "cam", "jo", "pel", "xa", "qui", "mon", "ter", "al", "en", "is", "or", "um", "ska",
    "dre", "fo", "gul",
];
