//! The ways a GGUF file stores weights: plain, half precision, and blocks of 32 with one scale.

use half::f16;

const BLOCK: usize = 32;

/// A storage type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Quant {
    /// Four bytes per weight.
    F32,
    /// Two bytes per weight.
    F16,
    /// 4.5 bits per weight.
    #[value(name = "q4_0")]
    Q4_0,
    /// 8.5 bits per weight.
    #[value(name = "q8_0")]
    Q8_0,
}

impl Quant {
    /// The type's number in a GGUF tensor table.
    pub fn code(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q8_0 => 8,
        }
    }

    /// The number that `general.file_type` uses for a file mostly of this type.
    pub fn file_type(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q8_0 => 7,
        }
    }

    /// Weights that are stored together; a row is a whole number of blocks.
    pub fn block(self) -> usize {
        match self {
            Self::F32 | Self::F16 => 1,
            Self::Q4_0 | Self::Q8_0 => BLOCK,
        }
    }

    /// Bytes that `count` weights take, whole blocks only.
    pub fn stored(self, count: usize) -> usize {
        let block = match self {
            Self::F32 => 4,
            Self::F16 => 2,
            Self::Q4_0 => 18,
            Self::Q8_0 => 34,
        };
        count / self.block() * block
    }

    /// The stored bytes of `values`; what is left after the last whole block is not stored.
    pub fn encode(self, values: &[f32]) -> Vec<u8> {
        match self {
            Self::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Self::F16 => values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
            Self::Q8_0 => values.chunks_exact(BLOCK).flat_map(q8_0).collect(),
            Self::Q4_0 => values.chunks_exact(BLOCK).flat_map(q4_0).collect(),
        }
    }
}

/// A half-precision scale, then 32 signed bytes.
fn q8_0(block: &[f32]) -> [u8; 34] {
    let top = block.iter().fold(0.0f32, |top, v| top.max(v.abs()));
    let scale = top / 127.0;
    let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
    let mut bytes = [0; 34];
    bytes[..2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
    for (byte, v) in bytes[2..].iter_mut().zip(block) {
        *byte = ((v * inverse).round() as i8).cast_unsigned();
    }
    bytes
}

/// A half-precision scale, then 32 values of four bits around 8; the first sixteen are the low halves of the bytes.
fn q4_0(block: &[f32]) -> [u8; 18] {
    // The scale takes the sign of the largest value, so that this value is exactly -8 steps.
    let top = block.iter().fold(0.0f32, |top, v| if v.abs() > top.abs() { *v } else { top });
    let scale = top / -8.0;
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    let step = |v: f32| (v * inverse + 8.5).clamp(0.0, 15.0) as u8;
    let mut bytes = [0; 18];
    bytes[..2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
    for (i, byte) in bytes[2..].iter_mut().enumerate() {
        *byte = step(block[i]) | (step(block[i + BLOCK / 2]) << 4);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decode(quant: Quant, bytes: &[u8]) -> Vec<f32> {
        let scale = |b: &[u8]| f16::from_le_bytes([b[0], b[1]]).to_f32();
        match quant {
            Quant::F32 => bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
            Quant::F16 => bytes.chunks(2).map(scale).collect(),
            Quant::Q8_0 => bytes
                .chunks(34)
                .flat_map(|b| b[2..].iter().map(|q| f32::from(q.cast_signed()) * scale(b)).collect::<Vec<_>>())
                .collect(),
            Quant::Q4_0 => bytes
                .chunks(18)
                .flat_map(|b| {
                    let value = |q: u8| (f32::from(q) - 8.0) * scale(b);
                    let (low, high) =
                        (b[2..].iter().map(move |q| value(q & 15)), b[2..].iter().map(move |q| value(q >> 4)));
                    low.chain(high).collect::<Vec<_>>()
                })
                .collect(),
        }
    }

    proptest! {
        #[test]
        fn stored_weights_come_back_within_half_a_step(values in prop::collection::vec(-4.0f32..4.0, 64)) {
            let top = values.iter().fold(0.0f32, |t, v| t.max(v.abs()));
            for (quant, step) in [(Quant::F32, 0.0), (Quant::F16, 0.004), (Quant::Q8_0, 0.006), (Quant::Q4_0, 0.13)] {
                let bytes = quant.encode(&values);
                prop_assert_eq!(bytes.len(), quant.stored(values.len()));
                for (v, w) in values.iter().zip(decode(quant, &bytes)) {
                    prop_assert!((v - w).abs() <= step * top + 1e-4, "{quant:?}: {v} became {w}");
                }
            }
        }
    }
}
