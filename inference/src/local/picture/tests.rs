//! Pictures from data URLs, what is refused, and the tokens that stand for them.

use super::*;
use image::{ImageFormat, RgbImage};
use proptest::prelude::*;

fn encoded(width: u32, height: u32, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    let pixels = RgbImage::from_fn(width, height, |x, y| image::Rgb([(x * 3) as u8, (y * 5) as u8, 77]));
    pixels.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

fn url(kind: &str, bytes: &[u8]) -> String {
    format!("data:image/{kind};base64,{}", base64::engine::general_purpose::STANDARD.encode(bytes))
}

fn picture(seed: u8) -> Picture {
    Picture::new(2, 1, vec![seed; 6]).unwrap()
}

#[test]
fn every_format_gives_the_same_pixels() {
    let wanted = Picture::of_url(&url("png", &encoded(20, 10, ImageFormat::Png)), MOST_PIXELS).unwrap();
    assert_eq!((wanted.width(), wanted.height(), wanted.rgb().len()), (20, 10, 600));
    assert_eq!(wanted.rgb()[3..6], [3, 0, 77]);
    for format in [ImageFormat::WebP, ImageFormat::Gif, ImageFormat::Jpeg] {
        // What the URL says of the kind does not count.
        let got = Picture::of_url(&url("png", &encoded(20, 10, format)), MOST_PIXELS).unwrap();
        let off = got.rgb().iter().zip(wanted.rgb()).map(|(got, wanted)| got.abs_diff(*wanted)).max();
        assert!((got.width(), got.height()) == (20, 10) && off < Some(60), "{format:?} is off by {off:?}");
    }
}

#[test]
fn what_is_wrong_with_a_picture_is_said() {
    let png = encoded(20, 10, ImageFormat::Png);
    let small = url("png", &png);
    let table = [
        ("https://example.org/cat.png".to_owned(), "fetches nothing"),
        ("file:///etc/passwd".to_owned(), "fetches nothing"),
        ("datä:".to_owned(), "fetches nothing"),
        (String::new(), "fetches nothing"),
        ("data:image/png;base64".to_owned(), "without data"),
        ("data:image/png,abc".to_owned(), "not marked as base64"),
        ("data:image/png;base64,ab*c".to_owned(), "no base64"),
        (url("png", b""), "cannot be decoded"),
        (url("png", b"GGUF and nothing else"), "cannot be decoded"),
        (url("png", &png[..png.len() / 2]), "cannot be decoded"),
        (url("svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>"), "cannot be decoded"),
        (url("png", &encoded(300, 2, ImageFormat::Png)), "100 times the other"),
    ];
    for (url, reason) in table {
        let why = Picture::of_url(&url, MOST_PIXELS).unwrap_err();
        assert!(why.contains(reason), "{url}: {why}");
    }
    let why = Picture::of_url(&small, 199).unwrap_err();
    assert!(why.contains("20 x 10 pixels") && why.contains("send it smaller"), "{why}");
    assert!(Picture::of_url(small.replacen("data:", "DATA:", 1).trim_end_matches('='), 200).is_ok());
}

#[test]
fn a_bomb_is_refused_by_what_its_header_says() {
    let mut png = encoded(1, 1, ImageFormat::Png);
    // Width and height stand behind the signature and the name of the first chunk, and a checksum behind that.
    png[16..20].copy_from_slice(&60_000u32.to_be_bytes());
    png[20..24].copy_from_slice(&60_000u32.to_be_bytes());
    let checksum = crc32fast::hash(&png[12..29]).to_be_bytes();
    png[29..33].copy_from_slice(&checksum);
    let why = Picture::of_url(&url("png", &png), MOST_PIXELS).unwrap_err();
    assert!(why.contains("60000 x 60000"), "{why}");
}

#[test]
fn pixels_and_sizes_have_to_agree() {
    assert!(Picture::new(2, 2, vec![0; 12]).is_some());
    for (width, height, bytes) in [(2, 2, 11), (0, 2, 0), (u32::MAX, u32::MAX, 3)] {
        assert!(Picture::new(width, height, vec![0; bytes]).is_none());
    }
    let turned = Picture::new(4, 1, vec![0; 12]).unwrap();
    assert_ne!(turned.hash(), Picture::new(2, 2, vec![0; 12]).unwrap().hash());
}

#[test]
fn a_prompt_is_told_from_another_by_its_pictures() {
    let prompt = |one: u8, two: u8, length: u32| {
        let pictures = [picture(one), picture(two)];
        expand(&[1, placeholder(0), 2, placeholder(1), 3], &pictures, &[length, length])
    };
    let common = |a: &[Token], b: &[Token]| surely_common(b, a.iter().zip(b).take_while(|(a, b)| a == b).count());
    let table = [
        ((7, 8, 10), (7, 8, 10), 23),
        ((7, 8, 10), (7, 9, 10), 12),
        ((7, 8, 10), (9, 8, 10), 1),
        // Too few tokens to name a picture.
        ((7, 8, 4), (7, 8, 4), 1),
    ];
    for ((a, b, n), (c, d, m), expected) in table {
        assert_eq!(common(&prompt(a, b, n), &prompt(c, d, m)), expected, "{a} {b} and {c} {d}");
    }
    let prompt = prompt(7, 8, 10);
    assert_eq!((count(&prompt), length_of_first(&prompt[1..]), length_of_first(&prompt[2..])), (2, 10, 0));
    // A cut inside of a picture moves before it.
    for cut in 0..=prompt.len() {
        let expected = if (1..11).contains(&cut) {
            1
        } else if (12..22).contains(&cut) {
            12
        } else {
            cut
        };
        assert_eq!(surely_common(&prompt, cut), expected, "{cut}");
    }
}

#[test]
fn the_same_picture_twice_in_a_row_is_two() {
    let prompt = expand(&[placeholder(0), placeholder(1)], &[picture(7), picture(7)], &[6, 6]);
    assert_eq!((prompt.len(), count(&prompt), length_of_first(&prompt)), (12, 2, 6));
    assert_eq!(prompt[..6], prompt[6..]);
}

proptest! {
    #[test]
    fn no_token_of_a_picture_is_a_word_and_different_pictures_have_no_common_beginning(
        one in any::<u8>(), two in any::<u8>(), count in 1u32..70,
    ) {
        let (first, second) = (picture(one).tokens(count), picture(two).tokens(count));
        prop_assert_eq!(first.len(), count as usize);
        prop_assert!(first.iter().all(|token| is_picture(*token) && *token >= 1 << 31));
        prop_assert_eq!(first == second, one == two);
        prop_assert_eq!(length_of_first(&first), count as usize);
    }

    #[test]
    fn marks_are_noncharacters_with_numbers(number in 0..MOST_PICTURES) {
        prop_assert_eq!(number_of(mark(number)), Some(number));
        let nonchars = '\u{FDD1}'..='\u{FDEF}';
        prop_assert!(nonchars.contains(&mark(number)));
    }
}
