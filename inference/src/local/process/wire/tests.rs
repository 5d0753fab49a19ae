//! The frames: what goes in comes out, whatever is cut or garbled is an error, and no length is believed.

use super::*;
use proptest::collection::vec;
use proptest::prelude::*;

fn frame(head: &impl Serialize, tail: &[&[f32]]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let tail: Vec<&[u8]> = tail.iter().map(|numbers| bytemuck::cast_slice(numbers)).collect();
    write(&mut bytes, &mut Vec::new(), head, &tail).unwrap();
    bytes
}

fn rows() -> impl Strategy<Value = Vec<Row>> {
    let row = (any::<u32>(), any::<u32>(), any::<u32>(), any::<bool>());
    vec(row.prop_map(|(token, position, sequence, output)| Row { token, position, sequence, output }), 0..50)
}

fn guessing() -> impl Strategy<Value = Guessing> {
    let numbers = (any::<u32>(), any::<u32>(), any::<u32>(), any::<u32>(), any::<u32>());
    (numbers, vec(any::<u32>(), 0..50)).prop_map(|((sequence, keep, next, most, reach), more)| Guessing {
        sequence,
        keep,
        more,
        next,
        most,
        reach,
    })
}

fn requests() -> impl Strategy<Value = Request<'static>> {
    prop_oneof![
        Just(Request::WarmUp),
        rows().prop_map(|rows| Request::Decode(Cow::Owned(rows))),
        (any::<u32>(), any::<u32>()).prop_map(|(sequence, keep)| Request::Truncate { sequence, keep }),
        (any::<u32>(), any::<u32>(), any::<u32>()).prop_map(|(from, to, length)| Request::Share { from, to, length }),
        any::<u32>().prop_map(|sequence| Request::Save { sequence }),
        (any::<u32>(), any::<u32>()).prop_map(|(sequence, length)| Request::Restore { sequence, length }),
        (vec(any::<u32>(), 0..20), vec(any::<u32>(), 0..200))
            .prop_map(|(lengths, tokens)| Request::Embed { lengths, tokens }),
        vec(guessing(), 0..5).prop_map(Request::Guess),
    ]
}

fn answers() -> impl Strategy<Value = Answer> {
    let limits = Limits {
        context: 4096,
        sequences: 4,
        batch: 512,
        vocabulary: 151_936,
        rewinds: true,
        idle_rows: Some(32),
        generates: true,
        ranks: false,
        embedding_context: 2048,
        embedding_width: 1024,
        sees: false,
    };
    let memory = proptest::option::of(any::<u64>());
    prop_oneof![
        prop::option::of(0.0f32..=1.0).prop_map(|loaded| Answer::Beat { loaded }),
        memory.clone().prop_map(move |memory| Answer::Loaded { limits: limits.clone(), memory }),
        ".{0,80}".prop_map(Answer::NotLoaded),
        memory.prop_map(|memory| Answer::Warm { memory }),
        Just(Answer::Decoded),
        Just(Answer::Saved),
        any::<bool>().prop_map(Answer::Done),
        any::<u32>().prop_map(|width| Answer::Vectors { width }),
        vec(vec(any::<u32>(), 0..20), 0..5).prop_map(Answer::Guessed),
        ".{0,80}".prop_map(|reason| Answer::Failed(EngineError::Broken(reason))),
        Just(Answer::Failed(EngineError::NoRoom)),
    ]
}

proptest! {
    #[test]
    fn frames_go_round_one_after_the_other(
        requests in vec(requests(), 1..5),
        answer in answers(),
        tail in vec(vec(any::<u32>().prop_map(f32::from_bits), 0..100), 0..5),
    ) {
        let slices: Vec<&[f32]> = tail.iter().map(Vec::as_slice).collect();
        let mut bytes: Vec<u8> = requests.iter().flat_map(|request| frame(request, &[])).collect();
        bytes.extend(frame(&answer, &slices));
        let (mut from, mut scratch) = (bytes.as_slice(), Vec::new());
        for request in &requests {
            let (read, tail): (Request<'static>, u64) = read(&mut from, &mut scratch).unwrap();
            prop_assert_eq!((&read, tail), (request, 0));
        }
        let (read_answer, length): (Answer, u64) = read(&mut from, &mut scratch).unwrap();
        prop_assert_eq!(read_answer, answer);
        let mut numbers = vec![7.0; 3];
        read_numbers(&mut from, length, tail.concat().len(), &mut numbers).unwrap();
        let bits = |numbers: &[f32]| numbers.iter().map(|number| number.to_bits()).collect::<Vec<_>>();
        prop_assert_eq!(bits(&numbers), bits(&tail.concat()));
        prop_assert!(from.is_empty());
    }

    #[test]
    fn what_is_cut_is_an_error_wherever_it_is_cut(request in requests(), answer in answers(), numbers in 1usize..40) {
        let whole = frame(&request, &[]);
        for end in 0..whole.len() {
            let cut = read::<Request<'static>>(&mut &whole[..end], &mut Vec::new()).unwrap_err();
            prop_assert_eq!(cut.kind(), ErrorKind::UnexpectedEof, "at {}", end);
        }
        let whole = frame(&answer, &[&vec![1.5; numbers]]);
        for end in 0..whole.len() {
            let mut from = &whole[..end];
            let cut = read::<Answer>(&mut from, &mut Vec::new())
                .and_then(|(_, tail)| read_numbers(&mut from, tail, numbers, &mut Vec::new()));
            prop_assert_eq!(cut.unwrap_err().kind(), ErrorKind::UnexpectedEof, "at {}", end);
            let mut from = &whole[..end];
            let cut = read::<Answer>(&mut from, &mut Vec::new()).and_then(|(_, tail)| read_bytes(&mut from, tail));
            prop_assert_eq!(cut.unwrap_err().kind(), ErrorKind::UnexpectedEof, "at {}", end);
        }
    }

    #[test]
    fn garbage_is_an_error_and_takes_no_memory(bytes in vec(any::<u8>(), 0..300)) {
        let mut scratch = Vec::new();
        let read = read::<Answer>(&mut bytes.as_slice(), &mut scratch);
        prop_assert!(scratch.capacity() < 64 << 10, "{} bytes for {}", scratch.capacity(), bytes.len());
        if let Ok((_, tail)) = read {
            let mut numbers = Vec::new();
            prop_assert!(read_numbers(&mut bytes.as_slice(), tail, 5, &mut numbers).is_err() || tail == 20);
            prop_assert!(numbers.capacity() <= 8);
            let bytes = read_bytes(&mut bytes.as_slice(), tail.max(301));
            prop_assert_eq!(bytes.unwrap_err().kind(), ErrorKind::UnexpectedEof);
        }
    }
}

#[test]
fn a_length_that_nobody_sent_is_not_believed() {
    let mut bytes = frame(&Answer::Decoded, &[]);
    bytes[..4].copy_from_slice(&LONGEST_HEAD.to_le_bytes());
    let mut scratch = Vec::new();
    let cut = read::<Answer>(&mut bytes.as_slice(), &mut scratch).unwrap_err();
    assert_eq!(cut.kind(), ErrorKind::UnexpectedEof);
    assert!(scratch.capacity() < 1 << 20, "{} bytes for a frame of {}", scratch.capacity(), bytes.len());
    bytes[..4].copy_from_slice(&(LONGEST_HEAD + 1).to_le_bytes());
    assert_eq!(read::<Answer>(&mut bytes.as_slice(), &mut scratch).unwrap_err().kind(), ErrorKind::InvalidData);

    // Inside the head: a vector that says it has four billion rows.
    let mut head = postcard::to_stdvec(&Request::Decode(Cow::Owned(Vec::new()))).unwrap();
    head.pop();
    head.extend([0xff, 0xff, 0xff, 0xff, 0x0f]);
    let mut bytes = vec![0; LENGTHS];
    bytes[..4].copy_from_slice(&(head.len() as u32).to_le_bytes());
    bytes.extend(head);
    assert_eq!(
        read::<Request<'static>>(&mut bytes.as_slice(), &mut scratch).unwrap_err().kind(),
        ErrorKind::InvalidData
    );
}

#[test]
fn a_frame_with_something_behind_its_head_is_refused() {
    let mut bytes = frame(&Answer::Beat { loaded: None }, &[]);
    bytes[0] += 1;
    bytes.push(0);
    assert_eq!(read::<Answer>(&mut bytes.as_slice(), &mut Vec::new()).unwrap_err().kind(), ErrorKind::InvalidData);
}

/// A writer that takes little at a time, as a full socket does.
struct Narrow(Vec<u8>);

impl Write for Narrow {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let some = bytes.len().min(7);
        self.0.extend_from_slice(&bytes[..some]);
        Ok(some)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_frame_that_is_written_in_pieces_is_whole() {
    let numbers: Vec<f32> = (0..100u16).map(f32::from).collect();
    let mut narrow = Narrow(Vec::new());
    let bytes: &[u8] = bytemuck::cast_slice(&numbers);
    write(&mut narrow, &mut Vec::new(), &Answer::Decoded, &[bytes, &[], bytes]).unwrap();
    assert_eq!(narrow.0, frame(&Answer::Decoded, &[&numbers, &[], &numbers]));
}
