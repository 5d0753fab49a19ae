//! What is there when an answer ends.

use super::*;

/// Notes how many sequences are taken in when it is woken.
struct Witness {
    admission: Arc<Admission>,
    seen: std::sync::Mutex<Option<u32>>,
}

impl std::task::Wake for Witness {
    fn wake(self: Arc<Self>) {
        *self.seen.lock().unwrap() = Some(self.admission.taken());
    }
}

#[test]
fn who_is_told_of_the_end_of_an_answer_finds_its_room_given_back() {
    let mut bench = Bench::new(Script::default(), 100, 1);
    let mut events = bench.ask(plain("ab", 3));
    let witness = Arc::new(Witness { admission: bench.admission.clone(), seen: None.into() });
    let waker = std::task::Waker::from(witness.clone());
    let mut context = std::task::Context::from_waker(&waker);
    let mut ended = false;
    while !ended {
        bench.turn().unwrap();
        while let std::task::Poll::Ready(Some(event)) = events.poll_next_unpin(&mut context) {
            ended = matches!(event.unwrap(), ChatEvent::Usage(_));
        }
    }
    assert_eq!(*witness.seen.lock().unwrap(), Some(0));
}
