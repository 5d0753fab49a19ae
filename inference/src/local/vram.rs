//! How much memory a model takes, told from its file before it is loaded, and what would make it smaller.
//!
//! Weights are the tensors that go to the device. The KV cache holds, for each layer, a key and a value of every KV head for each
//! token of every slot: `layers × kv_heads × (key_length + value_length) × bytes × context × slots`; windowed layers count in full,
//! because the engine keeps them in full. Compute buffers hold the activations of one batch; what is said here is an upper
//! bound of what was measured (the logits of a batch, and the widest layer a few times), and the engine's own report replaces all of it once
//! the model was loaded.

use super::gguf::Header;
use std::fmt;
use tollkeeper_config::KvType;

/// Rows of the largest batch.
const BATCH: u64 = 512;
/// No conversation is useful in less.
const SHORTEST_CONTEXT: u32 = 2048;

/// How a model is to be loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Tokens of a slot.
    pub(crate) context: u32,
    pub(crate) slots: u32,
    pub(crate) kv: KvType,
    /// Layers on the device; `None` is all.
    pub(crate) layers: Option<u32>,
}

/// Bytes a model takes on its device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Estimate {
    pub(crate) weights: u64,
    pub(crate) kv: u64,
    pub(crate) compute: u64,
}

impl Estimate {
    pub(crate) fn of(header: &Header, shape: Shape) -> Self {
        let layers = header.figure("block_count").unwrap_or(0);
        let loaded = shape.layers.map_or(layers, |wanted| layers.min(u64::from(wanted)));
        let first = layers - loaded;
        let on_device = |name: &str| match layer_of(name) {
            Some(layer) => layer >= first,
            // The output goes to the device with the last layer; the table of words is counted too, since it may be the output.
            None => first == 0,
        };
        let weights = header.tensors.iter().filter(|(name, _)| on_device(name)).map(|(_, bytes)| bytes).sum();
        let share = |bytes: u64| bytes.checked_div(layers).map_or(bytes, |each| each * loaded);
        Self { weights, kv: share(kv(header, layers, shape)), compute: compute(header) }
    }

    /// Of files that are loaded together: a model and its draft, which has as many slots of as many tokens.
    pub(crate) fn of_all(headers: &[Header], shape: Shape) -> u64 {
        headers.iter().fold(0, |sum: u64, header| sum.saturating_add(Self::of(header, shape).total()))
    }

    pub(crate) fn total(&self) -> u64 {
        self.weights.saturating_add(self.kv).saturating_add(self.compute)
    }
}

/// `blk.7.attn_q.weight` is of layer 7.
fn layer_of(name: &str) -> Option<u64> {
    name.strip_prefix("blk.")?.split('.').next()?.parse().ok()
}

fn kv(header: &Header, layers: u64, shape: Shape) -> u64 {
    let heads = header.figure("attention.head_count").unwrap_or(0);
    let kv_heads = header
        .sum_over_layers("attention.head_count_kv", layers)
        .or_else(|| header.sum_over_layers("attention.head_count", layers))
        .unwrap_or(0);
    let usual = header.figure("embedding_length").unwrap_or(0).checked_div(heads).unwrap_or(0);
    let length = |name| header.figure(name).unwrap_or(usual);
    let values = kv_heads.saturating_mul(length("attention.key_length") + length("attention.value_length"));
    let cells = u64::from(shape.context).saturating_mul(u64::from(shape.slots));
    let (per, bytes) = block(shape.kv);
    values.saturating_mul(cells).div_ceil(per).saturating_mul(bytes)
}

/// Values of a block of the cache, and its bytes.
fn block(kv: KvType) -> (u64, u64) {
    match kv {
        KvType::F16 => (1, 2),
        KvType::Q8_0 => (32, 34),
        KvType::Q4_0 => (32, 18),
    }
}

/// Bytes that a vision model's projector takes: its weights, and the activations of one picture of the size that its file names.
pub(crate) fn projector(header: &Header) -> u64 {
    let figure = |name: &str| header.figure(&format!("vision.{name}")).unwrap_or(0);
    let side = figure("image_size").checked_div(figure("patch_size")).unwrap_or(0);
    let widths = 2 * figure("feed_forward_length") + 6 * figure("embedding_length");
    let weights: u64 = header.tensors.iter().map(|(_, bytes)| bytes).sum();
    let activations = side.saturating_mul(side).saturating_mul(widths).saturating_mul(4);
    weights.saturating_add(activations).saturating_add(16 << 20)
}

fn compute(header: &Header) -> u64 {
    let width = header.figure("embedding_length").unwrap_or(0);
    let inner = header.figure("feed_forward_length").unwrap_or(4 * width);
    let widest = header.vocabulary().max(inner * 3 + width * 4);
    (widest * BATCH * 4).saturating_add(16 << 20)
}

/// A change that makes a model smaller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Remedy {
    /// Keys and values of eight bits.
    Kv(KvType),
    /// Fewer requests at once.
    Slots(u32),
    /// Shorter conversations.
    Context(u32),
    /// The rest is computed by the CPU.
    Layers(u32),
}

impl fmt::Display for Remedy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kv(kv) => write!(f, "kv = \"{kv}\""),
            Self::Slots(slots) => write!(f, "slots = {slots}"),
            Self::Context(context) => write!(f, "context = {context}"),
            Self::Layers(layers) => write!(f, "gpu_layers = {layers} (slow)"),
        }
    }
}

/// The shape with one change.
fn with(shape: Shape, remedy: Remedy) -> Shape {
    match remedy {
        Remedy::Kv(kv) => Shape { kv, ..shape },
        Remedy::Slots(slots) => Shape { slots, ..shape },
        Remedy::Context(context) => Shape { context, ..shape },
        Remedy::Layers(layers) => Shape { layers: Some(layers), ..shape },
    }
}

/// Steps from a shape to ever smaller ones, each upon the ones before: those that cost least come first. Layers leave the device only
/// where there is one (`offload`).
fn ladder(header: &Header, shape: Shape, offload: bool) -> Vec<Remedy> {
    let mut steps = Vec::new();
    if shape.kv == KvType::F16 {
        steps.push(Remedy::Kv(KvType::Q8_0));
    }
    let halves =
        |from: u32, to: u32| std::iter::successors(Some(from / 2), |n| Some(n / 2)).take_while(move |n| *n >= to);
    steps.extend(halves(shape.slots, 1).map(Remedy::Slots));
    steps.extend(halves(shape.context, SHORTEST_CONTEXT).map(Remedy::Context));
    let layers = u32::try_from(header.figure("block_count").unwrap_or(0)).unwrap_or(0);
    if offload {
        steps.extend((0..shape.layers.unwrap_or(layers).min(layers)).rev().map(Remedy::Layers));
    }
    steps
}

/// The largest shape on the ladder in which files that are loaded together, the model first, take no more than `room`, and the changes that
/// led there; `None` if even the smallest is too large.
pub(crate) fn fit(headers: &[Header], shape: Shape, room: u64, offload: bool) -> Option<(Shape, Vec<Remedy>)> {
    let fits = |shape| Estimate::of_all(headers, shape) <= room;
    if fits(shape) {
        return Some((shape, Vec::new()));
    }
    let header = headers.first()?;
    let mut now = shape;
    let mut made: Vec<Remedy> = Vec::new();
    for step in ladder(header, shape, offload) {
        now = with(now, step);
        // The next half replaces the one before.
        made.retain(|old| std::mem::discriminant(old) != std::mem::discriminant(&step));
        made.push(step);
        if fits(now) {
            return Some((now, made));
        }
    }
    None
}

/// Bytes as people read them.
pub(crate) fn shown(bytes: u64) -> String {
    let (unit, name) = if bytes >= 1 << 30 { (1u64 << 30, "GiB") } else { (1 << 20, "MiB") };
    let tenths = (u128::from(bytes) * 10).div_ceil(u128::from(unit));
    format!("{}.{} {name}", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::super::gguf::tests::header;
    use super::*;
    use proptest::prelude::*;

    const SHAPE: Shape = Shape { context: 8192, slots: 4, kv: KvType::F16, layers: None };

    /// An 8B of the Llama 3 family, as its model card and file list say.
    fn llama_8b() -> Header {
        let layers: Vec<(String, u64)> = (0..32).map(|n| (format!("blk.{n}.all"), 180 << 20)).collect();
        let mut tensors: Vec<(&str, u64)> = layers.iter().map(|(name, bytes)| (name.as_str(), *bytes)).collect();
        tensors.extend([("token_embd.weight", 410 << 20), ("output.weight", 410 << 20)]);
        let figures = [
            ("block_count", 32),
            ("embedding_length", 4096),
            ("feed_forward_length", 14336),
            ("attention.head_count", 32),
            ("attention.head_count_kv", 8),
        ];
        header(&figures, 128_256, &tensors)
    }

    #[test]
    fn an_8b_takes_128_kib_of_kv_for_each_token() {
        let estimate = Estimate::of(&llama_8b(), SHAPE);
        assert_eq!(estimate.kv, (128 << 10) * 8192 * 4);
        assert_eq!(estimate.weights, (32 * 180 + 820) << 20);
        let eight_bits = Estimate::of(&llama_8b(), Shape { kv: KvType::Q8_0, ..SHAPE });
        assert_eq!(eight_bits.kv, estimate.kv / 64 * 34);
    }

    #[test]
    fn half_the_layers_take_half_the_layers() {
        let half = Estimate::of(&llama_8b(), Shape { layers: Some(16), ..SHAPE });
        assert_eq!(half.weights, (16 * 180) << 20, "the output stays with the CPU");
        assert_eq!(half.kv, Estimate::of(&llama_8b(), SHAPE).kv / 2);
        assert_eq!(Estimate::of(&llama_8b(), Shape { layers: Some(0), ..SHAPE }).weights, 0);
        let more = Estimate::of(&llama_8b(), Shape { layers: Some(99), ..SHAPE });
        assert_eq!(more, Estimate::of(&llama_8b(), SHAPE));
    }

    #[test]
    fn what_does_not_fit_is_made_smaller_in_the_order_of_what_it_costs() {
        let header = llama_8b();
        let whole = Estimate::of(&header, SHAPE).total();
        let table: [(u64, bool, &[Remedy]); 5] = [
            (whole, true, &[]),
            (whole - 1, true, &[Remedy::Kv(KvType::Q8_0)]),
            (8_500 << 20, true, &[Remedy::Kv(KvType::Q8_0), Remedy::Slots(2)]),
            (7_200 << 20, true, &[Remedy::Kv(KvType::Q8_0), Remedy::Slots(1), Remedy::Context(4096)]),
            (
                4_000 << 20,
                true,
                &[Remedy::Kv(KvType::Q8_0), Remedy::Slots(1), Remedy::Context(2048), Remedy::Layers(20)],
            ),
        ];
        for (room, offload, expected) in table {
            let (shape, made) = fit(std::slice::from_ref(&header), SHAPE, room, offload).unwrap();
            assert_eq!(made, expected, "{}", shown(room));
            assert!(Estimate::of(&header, shape).total() <= room);
        }
        assert_eq!(fit(std::slice::from_ref(&header), SHAPE, 4_000 << 20, false), None);
        assert_eq!(fit(&[header], SHAPE, 1, true), None);
    }

    #[test]
    fn sizes_are_rounded_up() {
        assert_eq!((shown(0), shown(1), shown(1 << 20)), ("0.0 MiB".into(), "0.1 MiB".into(), "1.0 MiB".into()));
        assert_eq!((shown(1 << 30), shown((24 << 30) + 1)), ("1.0 GiB".into(), "24.1 GiB".into()));
    }

    proptest! {
        #[test]
        fn less_is_never_more(context in 1u32..200_000, slots in 1u32..64, layers in 0u32..40) {
            let header = llama_8b();
            let shape = Shape { context, slots, kv: KvType::F16, layers: Some(layers) };
            let total = |shape| Estimate::of(&header, shape).total();
            for remedy in [
                Remedy::Kv(KvType::Q8_0),
                Remedy::Kv(KvType::Q4_0),
                Remedy::Slots(slots.div_ceil(2)),
                Remedy::Context(context.div_ceil(2)),
                Remedy::Layers(layers / 2),
            ] {
                prop_assert!(total(with(shape, remedy)) <= total(shape));
            }
        }
    }
}
