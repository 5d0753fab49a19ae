//! The engine over a socket, with a thread in the place of the process.

use super::*;
use crate::local::scripted::{IM_END, Script, ScriptedEngine};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tollkeeper_config::{LocalModel, Speculate};

/// A scripted model; the folder lives as long as it must be loadable.
fn plan(script: &str) -> (LoadPlan, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("tollkeeper.toml");
    std::fs::write(folder.path().join("script.json"), script).unwrap();
    let model = "name = 'm'\npath = 'script.json'\nengine = 'scripted'\nhost = 'process'\ncontext = 64\nslots = 3";
    std::fs::write(&config, format!("[[local.models]]\n{model}\n")).unwrap();
    let config = tollkeeper_config::load(&config).unwrap();
    let model = config.local.models["m"].clone();
    (LoadPlan::new(model), folder)
}

/// Runs the engine of this plan at the other end of a socket.
fn over_a_socket(plan: &LoadPlan, mut serve: impl FnMut(&mut dyn Engine)) -> Result<(), LoadError> {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let process = std::thread::spawn(move || child::talk(theirs, || {}));
    let done = run_over(Link::over(ours, SILENCE).unwrap(), plan, &mut |_, engine| serve(engine));
    process.join().unwrap().unwrap();
    done
}

fn row(token: Token, position: u32, sequence: u32, output: bool) -> Row {
    Row { token, position, sequence, output }
}

#[test]
fn it_computes_what_the_engine_itself_computes() {
    let (plan, _folder) = plan("{}");
    let batches = [
        vec![row(3, 0, 0, false), row(4, 1, 0, true), row(5, 0, 1, true), row(6, 0, 2, false)],
        vec![row(7, 1, 1, true), row(8, 2, 0, false)],
        vec![row(IM_END, 1, 2, true), row(9, 2, 1, true), row(10, 3, 0, true)],
    ];
    let mut served = false;
    over_a_socket(&plan, |engine| {
        served = true;
        let mut direct = ScriptedEngine::new(Script::default(), 64, 3);
        assert_eq!(engine.limits(), direct.limits());
        engine.warm_up().unwrap();
        assert_eq!(engine.memory(), direct.memory());
        for rows in &batches {
            engine.decode(rows).unwrap();
            direct.decode(rows).unwrap();
            for at in 0..=rows.len() {
                assert_eq!(engine.logits(at), direct.logits(at), "row {at} of {rows:?}");
            }
        }
        // Two sequences are cut to the same tokens, and one begins as another does: both go on where the engine itself would.
        for engine in [&mut *engine, &mut direct as &mut dyn Engine] {
            assert!(engine.truncate(0, 2));
            assert!(engine.truncate(1, 0));
            engine.share(0, 1, 2);
        }
        let rows = [row(11, 2, 0, true), row(12, 2, 1, true)];
        engine.decode(&rows).unwrap();
        direct.decode(&rows).unwrap();
        assert_eq!(engine.logits(1), direct.logits(1));
        let state = engine.save(0).unwrap();
        assert_eq!(Some(&state), direct.save(0).as_ref());
        assert!(engine.truncate(2, 0) && !engine.restore(2, &state, 99) && engine.restore(2, &state, 3));
        assert_eq!(engine.save(2), Some(state));
        let inputs: [&[Token]; 3] = [&[1, 2, 3], &[9], &[4, 4]];
        assert_eq!(engine.embed(&inputs).unwrap(), direct.embed(&inputs).unwrap());
        assert!(engine.embed(&[]).unwrap().is_empty());
        engine.alive().unwrap();
    })
    .unwrap();
    assert!(served);
}

#[test]
fn guesses_come_from_the_draft_in_the_process() {
    let (plan, _folder) = plan("{}");
    let model = LocalModel { speculate: Speculate::Draft("echo".into()), ..(*plan.model).clone() };
    let plan = LoadPlan { model: Arc::new(model), ..plan };
    over_a_socket(&plan, |engine| {
        let letter = |at: usize| Token::from(b'a') + at as Token;
        let text = |sequence, read| Unfinished { sequence, read, next: 9, most: 2, reach: 99 };
        let guess = |engine: &mut dyn Engine, texts: &[Unfinished<'_>]| engine.guess(texts).unwrap();
        let both = [text(1, &[1, 2, 3]), text(0, &[1])];
        assert_eq!(guess(engine, &both), [[letter(4), letter(5)], [letter(2), letter(3)]]);
        // One text goes on otherwise, one is cut, and one is new.
        let all = [text(0, &[1, 9, 7, 7]), text(1, &[1, 2]), text(2, &[])];
        assert_eq!(guess(engine, &all), [[letter(5), letter(6)], [letter(3), letter(4)], [letter(1), letter(2)]]);
        assert!(guess(engine, &[]).is_empty());
    })
    .unwrap();
}

#[test]
fn faults_of_the_engine_come_through() {
    let (with_little_room, _folder) = plan(r#"{"cells": 2}"#);
    over_a_socket(&with_little_room, |engine| {
        let three = [row(1, 0, 0, false), row(1, 1, 0, false), row(1, 2, 0, true)];
        assert_eq!(engine.decode(&three), Err(EngineError::NoRoom));
        engine.decode(&three[..2]).unwrap();
        let strange = engine.decode(&[row(1, 7, 0, true)]).unwrap_err();
        assert!(matches!(&strange, EngineError::Broken(reason) if reason.contains("after 2 tokens")), "{strange}");
    })
    .unwrap();
    let (broken, _folder) = plan(r#"{"load_error": "no such thing"}"#);
    assert_eq!(over_a_socket(&broken, |_| panic!("it serves")), Err(LoadError("no such thing".into())));
}

#[test]
fn a_process_that_ends_breaks_the_engine_for_good() {
    let (plan, _folder) = plan("{}");
    let (ours, theirs) = UnixStream::pair().unwrap();
    let cut = theirs.try_clone().unwrap();
    let process = std::thread::spawn(move || child::talk(theirs, || {}));
    run_over(Link::over(ours, SILENCE).unwrap(), &plan, &mut |_, engine| {
        engine.decode(&[row(1, 0, 0, true)]).unwrap();
        cut.shutdown(std::net::Shutdown::Both).unwrap();
        assert!(engine.truncate(0, 0) && !engine.truncate(0, 1));
        assert!(engine.save(0).is_none() && !engine.restore(0, &[], 0));
        let gone = Err(EngineError::Broken("its process ended".into()));
        assert_eq!(engine.decode(&[row(1, 1, 0, true)]), gone);
        assert_eq!((engine.alive(), engine.warm_up()), (gone.clone(), gone));
    })
    .unwrap();
    process.join().unwrap().ok();
}

#[test]
fn one_that_says_nothing_is_given_up_and_one_that_shows_life_is_waited_for() {
    let (plan, _folder) = plan(r#"{"step_millis": 1500}"#);
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let mut link = Link::over(ours, Duration::from_millis(20)).unwrap();
    let silent = link.ask(&Request::WarmUp).unwrap_err().to_string();
    assert!(silent.contains("did not show life for 20ms"), "{silent}");

    // One step takes longer than the silence that is allowed, and the beats are more frequent than that.
    let (ours, theirs) = UnixStream::pair().unwrap();
    let process = std::thread::spawn(move || child::talk(theirs, || {}));
    let link = Link::over(ours, child::BEAT * 4).unwrap();
    run_over(link, &plan, &mut |_, engine| engine.decode(&[row(1, 0, 0, true)]).unwrap()).unwrap();
    process.join().unwrap().unwrap();
}

#[test]
fn a_load_can_be_stopped() {
    let (plan, _folder) = plan("{}");
    let (ours, theirs) = UnixStream::pair().unwrap();
    plan.stop.store(true, Ordering::Relaxed);
    let stopped = run_over(Link::over(ours, SILENCE).unwrap(), &plan, &mut |_, _| panic!("it serves"));
    assert_eq!(stopped, Err(LoadError("its process was stopped while loading".into())));
    drop(theirs);
}

#[test]
fn what_a_process_says_of_its_load_is_shown() {
    let (plan, _folder) = plan("{}");
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let mut link = Link::over(ours, SILENCE).unwrap();
    let mut say = |answer: &Answer| wire::write(&mut theirs, &mut Vec::new(), answer, &[]).unwrap();
    say(&Answer::Beat { loaded: None });
    say(&Answer::Beat { loaded: Some(0.25) });
    say(&Answer::NotLoaded("enough".into()));
    assert_eq!(link.loaded(&plan).unwrap().0, Answer::NotLoaded("enough".into()));
    assert_eq!(plan.progress.get(), Some(0.25));
    // Beats of other answers say nothing of a load.
    say(&Answer::Beat { loaded: Some(1.0) });
    say(&Answer::Done(true));
    assert_eq!(link.ask(&Request::WarmUp).unwrap().0, Answer::Done(true));
    assert_eq!(plan.progress.get(), Some(0.25));
}

#[test]
fn who_is_left_alone_in_a_long_step_notices() {
    let (plan, _folder) = plan(r#"{"step_millis": 700}"#);
    let (ours, theirs) = UnixStream::pair().unwrap();
    let alone = Arc::new(AtomicBool::new(false));
    let noticed = alone.clone();
    let process = std::thread::spawn(move || child::talk(theirs, move || noticed.store(true, Ordering::Relaxed)));
    let mut link = Link::over(ours, SILENCE).unwrap();
    link.send(&Request::Load(Box::new((*plan.model).clone())), &[]).unwrap();
    link.loaded(&plan).unwrap();
    link.send(&Request::Decode(Cow::Owned(vec![row(1, 0, 0, true)])), &[]).unwrap();
    drop(link);
    drop(process.join().unwrap());
    assert!(alone.load(Ordering::Relaxed));
}

#[test]
fn a_program_that_is_no_gateway_is_no_engine() {
    let (plan, _folder) = plan("{}");
    let missing = run(Path::new("/nowhere/tollkeeper"), &plan, &mut |_, _| panic!("it serves")).unwrap_err();
    assert!(missing.0.contains("no process can be started"), "{missing}");
    let other = run(Path::new("/bin/false"), &plan, &mut |_, _| panic!("it serves")).unwrap_err();
    assert!(other.0.contains("ended with exit code 1"), "{other}");
    let none = engine::run(&plan, &mut |_, _| panic!("it serves")).unwrap_err();
    assert!(none.0.contains("in threads only"), "{none}");
}

#[test]
fn a_picture_goes_to_the_process_and_is_seen_there() {
    let (plan, _folder) = plan("{}");
    let model = tollkeeper_config::LocalModel { mmproj: Some("eyes".into()), ..(*plan.model).clone() };
    let plan = LoadPlan { model: Arc::new(model), ..plan };
    let seen = Picture::new(1, 3, *b"cxxaxxtxx").unwrap();
    let offensive = Picture::new(crate::local::scripted::OFFENSIVE, 1, vec![0; 39]).unwrap();
    let mut served = false;
    over_a_socket(&plan, |engine| {
        served = true;
        assert!(engine.limits().sees);
        assert_eq!(engine.measure(&seen), Ok(4));
        let refused = engine.measure(&offensive).unwrap_err();
        assert!(matches!(&refused, EngineError::Unfit(why) if why.contains("13 x 1")), "{refused:?}");
        engine.decode(&[row(Token::from(b'a'), 0, 0, false)]).unwrap();
        engine.show(&seen, 0, 1).unwrap();
        let read: Vec<u8> = engine.save(0).unwrap().chunks(4).map(|token| token[0]).collect();
        assert_eq!(read, b"acat.");
        assert!(matches!(engine.show(&seen, 0, 1), Err(EngineError::Broken(_))), "a gap");
    })
    .unwrap();
    assert!(served);
}
