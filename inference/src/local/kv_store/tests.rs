//! The store: what is found, what goes where when budgets are full, and what is refused.

use super::*;
use proptest::prelude::*;
use std::path::Path;
use std::time::{Duration, Instant};
use tollkeeper_config::KvType;

const MODEL: Fingerprint = [7; 32];

fn tokens(seed: u32, length: usize) -> Vec<Token> {
    (0..length as u32).map(|at| seed * 100_000 + at).collect()
}

fn state(tokens: &[Token]) -> Vec<u8> {
    tokens.iter().flat_map(|token| token.to_le_bytes()).collect()
}

/// What [`put`] of so many tokens takes.
fn size(length: usize) -> u64 {
    8 * length as u64
}

fn put(shelf: &Shelf, tokens: &[Token]) {
    shelf.put(tokens, state(tokens));
}

fn get(shelf: &Shelf, prompt: &[Token]) -> Option<Vec<u8>> {
    Some(shelf.take(shelf.find(prompt)?)?.to_vec())
}

fn in_memory(bytes: u64) -> Arc<KvStore> {
    KvStore::new(Budget { memory: bytes, disk: 0, folder: None })
}

fn on_disk(folder: &Path, memory: u64, disk: u64) -> Arc<KvStore> {
    KvStore::new(Budget { memory, disk, folder: Some(folder.to_path_buf()) })
}

/// Waits for the writer's thread.
fn written(folder: &Path, files: usize) -> Vec<PathBuf> {
    let patience = Instant::now() + Duration::from_secs(20);
    loop {
        let found: Vec<PathBuf> = file::of_model(folder, &MODEL).into_iter().map(|(path, _)| path).collect();
        if found.len() == files {
            return found;
        }
        assert!(Instant::now() < patience, "{} files instead of {files}", found.len());
        std::thread::yield_now();
    }
}

#[test]
fn the_longest_beginning_is_found_for_its_own_model_only() {
    let store = in_memory(1 << 20);
    let shelf = store.shelf(MODEL);
    let (short, long) = (tokens(1, 200), tokens(1, 300));
    put(&shelf, &short);
    put(&shelf, &tokens(2, 500));
    let found = shelf.find(&long).unwrap();
    assert_eq!((found.common, found.length), (200, 200));
    put(&shelf, &long);
    let found = shelf.find(&tokens(1, 250)).unwrap();
    assert_eq!((found.common, found.length), (250, 300));
    assert_eq!(get(&shelf, &tokens(1, 250)), Some(state(&long)));
    assert!(shelf.holds(&short) && !shelf.holds(&tokens(1, 301)));
    assert_eq!(store.reading().memory_bytes, size(300) + size(500), "the beginning of another is dropped");
    assert_eq!(shelf.find(&tokens(1, SHORTEST - 1)), None, "too short to be worth it");
    assert_eq!(store.shelf([8; 32]).find(&long), None);
}

#[test]
fn the_longest_unused_is_dropped_when_memory_is_full() {
    let store = in_memory(2 * size(200));
    let shelf = store.shelf(MODEL);
    put(&shelf, &tokens(1, 200));
    put(&shelf, &tokens(2, 200));
    assert!(get(&shelf, &tokens(1, 200)).is_some());
    put(&shelf, &tokens(3, 200));
    assert_eq!(get(&shelf, &tokens(2, 200)), None);
    assert!(get(&shelf, &tokens(1, 200)).is_some() && get(&shelf, &tokens(3, 200)).is_some());
    put(&shelf, &tokens(4, 10_000));
    assert_eq!(shelf.find(&tokens(4, 10_000)), None, "what is larger than all of it is not taken in");
}

#[test]
fn what_leaves_memory_goes_to_disk_and_comes_back_also_for_another_process() {
    let folder = tempfile::tempdir().unwrap();
    let store = on_disk(folder.path(), size(200), 10 * size(200));
    let shelf = store.shelf(MODEL);
    put(&shelf, &tokens(1, 200));
    put(&shelf, &tokens(2, 200));
    written(folder.path(), 1);
    assert_eq!(store.reading().memory_bytes, size(200));
    assert_eq!(get(&shelf, &tokens(1, 200)), Some(state(&tokens(1, 200))));
    store.flush();
    written(folder.path(), 2);
    let later = on_disk(folder.path(), size(200), 10 * size(200)).shelf(MODEL);
    for seed in [1, 2] {
        assert_eq!(get(&later, &tokens(seed, 300)), Some(state(&tokens(seed, 200))));
    }
    let smaller = on_disk(folder.path(), 0, size(200) + 100);
    smaller.shelf(MODEL);
    assert!(smaller.reading().disk_bytes <= size(200) + 100);
    written(folder.path(), 1);
}

#[test]
fn a_damaged_or_foreign_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let store = on_disk(folder.path(), 0, 1 << 20);
    put(&store.shelf(MODEL), &tokens(1, 200));
    store.flush();
    let path = written(folder.path(), 1).remove(0);
    let good = std::fs::read(&path).unwrap();

    assert!(file::read(&path, &[8; 32]).is_err(), "of another model");
    for at in [0, 4, 8, 40, 48, 56 + 4 * 150, good.len() - 10, good.len() - 1] {
        let mut bad = good.clone();
        bad[at] ^= 1;
        std::fs::write(&path, &bad).unwrap();
        let again = on_disk(folder.path(), 1 << 20, 1 << 20);
        assert_eq!(get(&again.shelf(MODEL), &tokens(1, 200)), None, "byte {at} is wrong");
        assert_eq!(again.reading().refused, 1);
        assert!(!path.exists(), "it is deleted");
    }
    std::fs::write(&path, &good[..good.len() - 1]).unwrap();
    let again = on_disk(folder.path(), 1 << 20, 1 << 20);
    assert_eq!(again.shelf(MODEL).find(&tokens(1, 200)), None, "cut");
    std::fs::write(&path, &good).unwrap();
    assert_eq!(
        get(&on_disk(folder.path(), 1 << 20, 1 << 20).shelf(MODEL), &tokens(1, 200)),
        Some(state(&tokens(1, 200)))
    );
}

#[test]
fn files_are_for_their_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let store = on_disk(&folder.path().join("kv"), 0, 1 << 20);
    put(&store.shelf(MODEL), &tokens(1, 200));
    store.flush();
    let path = written(&folder.path().join("kv"), 1).remove(0);
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
}

#[test]
fn a_fingerprint_tells_files_and_settings_apart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model");
    let of = |content: &[u8], kv| {
        std::fs::write(&path, content).unwrap();
        fingerprint(&LocalModel { path: path.clone(), kv, ..crate::local::size::tests::shipped() }).unwrap()
    };
    let mut content = vec![1; 1_000_000];
    let first = of(&content, KvType::F16);
    assert_eq!(first, of(&content, KvType::F16));
    assert_ne!(first, of(&content, KvType::Q8_0));
    content[999_999] = 2;
    assert_ne!(first, of(&content, KvType::F16));
    assert_ne!(of(b"", KvType::F16), of(b"x", KvType::F16));
}

proptest! {
    #[test]
    fn budgets_hold_and_nothing_false_is_given(
        acts in prop::collection::vec((0u32..6, 128usize..400, any::<bool>()), 1..60),
        memory in 0u64..12_000,
    ) {
        let folder = tempfile::tempdir().unwrap();
        let store = on_disk(folder.path(), memory, 9_000);
        let shelf = store.shelf(MODEL);
        for (seed, length, save) in acts {
            let wanted = tokens(seed, length);
            if save {
                put(&shelf, &wanted);
            } else if let Some(found) = shelf.find(&wanted)
                && let Some(given) = shelf.take(found)
            {
                prop_assert_eq!(&given[..], &state(&tokens(seed, found.length))[..]);
                prop_assert!(found.common <= length);
            }
            let reading = store.reading();
            prop_assert!(reading.memory_bytes <= memory && reading.disk_bytes <= 9_000);
            let inner = store.enter();
            let kept: u64 = inner.entries.values().filter(|entry| entry.state.is_some()).map(|entry| entry.bytes).sum();
            let filed: u64 = inner.entries.values().filter(|entry| entry.path.is_some()).map(|entry| entry.bytes).sum();
            prop_assert_eq!((kept, filed), (reading.memory_bytes, reading.disk_bytes));
            prop_assert!(inner.entries.values().all(|entry| entry.state.is_some() || entry.path.is_some()));
        }
    }
}
