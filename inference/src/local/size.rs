//! What a configured model will take of the memory there is, and how it is made to fit.

use super::gguf::Header;
use super::vram::{Estimate, Shape, fit, projector, shown};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tollkeeper_config::{EngineKind, KvType, LocalModel, Speculate};

/// How fast a model is expected to come in before one was measured: a disk of NVMe and a bus of PCIe 4, with something to spare.
const BYTES_A_SECOND: u64 = 1 << 30;
const FIXED_LOAD: Duration = Duration::from_millis(300);
/// The candle engine's longest context.
const CANDLE_CONTEXT: u32 = 4096;
/// What of cards that no driver tells more about may go to models, in percent.
#[cfg(all(feature = "vulkan", not(feature = "cuda")))]
const SHARE_OF_CARD: u64 = 94;
/// What of the memory of a machine without a GPU may go to models, in percent.
const SHARE_OF_RAM: u64 = 80;

/// The model as it is to be loaded, and the bytes it takes then. It is only made smaller if it may be and does not fit otherwise. A file that
/// cannot be read takes nothing: that it cannot be loaded is for the load to say.
pub(crate) fn plan(configured: &Arc<LocalModel>, budget: u64) -> (Arc<LocalModel>, u64) {
    let model = configured.clone();
    if let Some(bytes) = model.residency.memory {
        return (model, bytes);
    }
    if model.engine == EngineKind::Scripted {
        return (model, 0);
    }
    let Ok(mut header) = Header::read(&model.path) else {
        let bytes = weigh(&model.path);
        return (model, bytes);
    };
    // An adapter's tensors lie beside those of their layers. One that cannot be read is for the load to complain about.
    let adapters = model.lora.iter().filter_map(|lora| Header::read(&lora.path).ok());
    header.tensors.extend(adapters.flat_map(|adapter| adapter.tensors));
    if model.engine == EngineKind::Candle {
        let bytes = by_candle(&header, &model);
        return (model, bytes);
    }
    let mut headers = vec![header];
    if let Speculate::Draft(draft) = &model.speculate {
        headers.extend(Header::read(draft));
    }
    let shape = Shape { context: model.context, slots: model.slots, kv: model.kv, layers: model.gpu_layers };
    let offload = cfg!(any(feature = "cuda", feature = "vulkan"));
    let projector = model.mmproj.as_deref().and_then(|file| Header::read(file).ok()).map_or(0, |file| projector(&file));
    let room = budget.saturating_sub(projector);
    let total = |shape| Estimate::of_all(&headers, shape).saturating_add(projector);
    let fitted = model.fit.then(|| fit(&headers, shape, room, offload)).flatten();
    let Some((shape, changes)) = fitted.filter(|(_, changes)| !changes.is_empty()) else {
        let bytes = total(shape);
        if bytes > budget {
            let would: Vec<String> = fit(&headers, shape, room, offload)
                .map(|(_, changes)| changes.iter().map(ToString::to_string).collect())
                .unwrap_or_default();
            tracing::warn!(
                model = model.name,
                needs = shown(bytes),
                budget = shown(budget),
                would_fit_with = would.join(", "),
                "the model does not fit into the memory for local models"
            );
        }
        return (model, bytes);
    };
    let bytes = total(shape);
    let changes: Vec<String> = changes.iter().map(ToString::to_string).collect();
    tracing::warn!(
        model = model.name,
        changes = changes.join(", "),
        takes = shown(bytes),
        "the model is loaded smaller than configured, to fit"
    );
    let Shape { context, slots, kv, layers } = shape;
    (Arc::new(LocalModel { context, slots, kv, gpu_layers: layers, ..(*model).clone() }), bytes)
}

/// What a model takes on the candle engine: its keys, values and table of words have 32 bits a number, and it has no other shapes.
fn by_candle(header: &Header, model: &LocalModel) -> u64 {
    let context = model.context.min(CANDLE_CONTEXT);
    let shape = Shape { context, slots: model.slots, kv: KvType::F16, layers: None };
    let sixteen = Estimate::of(header, shape);
    let words = header.vocabulary().saturating_mul(header.figure("embedding_length").unwrap_or(0)).saturating_mul(4);
    sixteen.total().saturating_add(sixteen.kv).saturating_add(words)
}

/// How long a model of so many bytes takes to come in, before one was measured.
pub(crate) fn expected_load(bytes: u64) -> Duration {
    FIXED_LOAD + Duration::from_millis(bytes * 1000 / BYTES_A_SECOND)
}

/// The memory for models when nobody said how much and no driver tells what a card has: a share of the machine's.
pub(crate) fn of_machine() -> u64 {
    #[cfg(all(feature = "vulkan", not(feature = "cuda")))]
    if let Some(cards) = super::llama_cpp::card_memory() {
        return cards / 100 * SHARE_OF_CARD;
    }
    let total = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
    });
    total.map_or(u64::MAX, |kib| kib * 1024 / 100 * SHARE_OF_RAM)
}

/// The bytes of a file, or of the files of a folder.
fn weigh(path: &Path) -> u64 {
    let length = |path: &Path| std::fs::metadata(path).map_or(0, |metadata| metadata.len());
    match std::fs::read_dir(path) {
        Ok(files) => files.flatten().map(|file| length(&file.path())).sum(),
        Err(_) => length(path),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use tollkeeper_config::{LoraAdapter, Residency};

    pub(crate) fn shipped() -> LocalModel {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/toll-tiny.gguf");
        LocalModel { context: 4096, slots: 8, ..LocalModel::plain("toll-tiny", EngineKind::LlamaCpp, path) }
    }

    #[test]
    fn a_model_is_made_smaller_only_if_it_may_be() {
        let asked = Arc::new(shipped());
        let (model, bytes) = plan(&asked, u64::MAX);
        assert_eq!((model, bytes > 1 << 20), (asked.clone(), true));
        assert_eq!(plan(&asked, bytes - 1), (asked.clone(), bytes), "it may not");
        let may = Arc::new(LocalModel { fit: true, ..shipped() });
        assert_eq!(plan(&may, bytes).0, may, "it need not");
        let (smaller, takes) = plan(&may, bytes - 1);
        assert_eq!((smaller.kv, smaller.slots), (KvType::Q8_0, 8));
        assert!(takes < bytes);
    }

    #[test]
    fn a_draft_counts_and_shrinks_with_its_model() {
        let alone = plan(&Arc::new(LocalModel { slots: 4, ..shipped() }), u64::MAX).1;
        let own = Speculate::Draft(shipped().path);
        let both = Arc::new(LocalModel { slots: 4, speculate: own.clone(), fit: true, ..shipped() });
        assert_eq!(plan(&both, u64::MAX), (both.clone(), 2 * alone));
        let (smaller, takes) = plan(&both, 2 * alone - 1);
        assert_eq!((smaller.kv, &smaller.speculate, takes < 2 * alone), (KvType::Q8_0, &own, true));
        let missing = Speculate::Draft("/nowhere".into());
        assert_eq!(plan(&Arc::new(LocalModel { slots: 4, speculate: missing, ..shipped() }), u64::MAX).1, alone);
    }

    #[test]
    fn an_adapter_takes_what_its_tensors_take() {
        let alone = plan(&Arc::new(shipped()), u64::MAX).1;
        // Any file with tensors will do: the adapter is as heavy as the model.
        let lora = |path| vec![LoraAdapter { path, scale: 1.0 }];
        let adapted = LocalModel { lora: lora(shipped().path), ..shipped() };
        let weights: u64 = Header::read(&shipped().path).unwrap().tensors.iter().map(|(_, bytes)| bytes).sum();
        assert_eq!(plan(&Arc::new(adapted), u64::MAX).1, alone + weights);
        let missing = LocalModel { lora: lora("/nowhere".into()), ..shipped() };
        assert_eq!(plan(&Arc::new(missing), u64::MAX).1, alone);
    }

    #[test]
    fn candle_takes_more_and_does_not_get_smaller() {
        let (_, by_llama) = plan(&Arc::new(shipped()), u64::MAX);
        let candle = Arc::new(LocalModel { engine: EngineKind::Candle, fit: true, ..shipped() });
        let (model, by_candle) = plan(&candle, by_llama / 2);
        assert!(by_candle > by_llama && model == candle);
        let long = Arc::new(LocalModel { context: 1 << 20, ..(*candle).clone() });
        assert_eq!(plan(&long, u64::MAX).1, by_candle, "it has no more than its longest context");
    }

    #[test]
    fn a_projector_takes_its_part() {
        use tollkeeper_models::projector::{Kind, Projector};
        let folder = tempfile::tempdir().unwrap();
        let eyes = folder.path().join("eyes.gguf");
        Projector::small(Kind::Llava, 64).write(&eyes).unwrap();
        let file = std::fs::metadata(&eyes).unwrap().len();
        let (_, blind) = plan(&Arc::new(shipped()), u64::MAX);
        let seeing = Arc::new(LocalModel { mmproj: Some(eyes), fit: true, ..shipped() });
        let (_, bytes) = plan(&seeing, u64::MAX);
        assert!(bytes > blind + file / 2, "{bytes} against {blind} and a file of {file}");
        let (smaller, takes) = plan(&seeing, bytes - 1);
        assert!(smaller.kv == KvType::Q8_0 && takes < bytes && smaller.mmproj == seeing.mmproj);
        let missing = Arc::new(LocalModel { mmproj: Some("/nowhere".into()), ..shipped() });
        assert_eq!(plan(&missing, u64::MAX).1, blind);
    }

    #[test]
    fn what_somebody_said_counts_and_a_missing_file_weighs_nothing() {
        let said = Residency { memory: Some(77), ..Residency::default() };
        assert_eq!(plan(&Arc::new(LocalModel { residency: said, ..shipped() }), 10).1, 77);
        assert_eq!(plan(&Arc::new(LocalModel { path: "/nowhere".into(), ..shipped() }), 10).1, 0);
    }

    #[test]
    fn a_machine_has_memory() {
        assert!(of_machine() > 1 << 28);
    }
}
