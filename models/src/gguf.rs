//! Writing GGUF version 3 files, and reading back what stands before the weights.

use std::io::{self, Read, Write};

use crate::quant::Quant;

const MAGIC: &[u8; 4] = b"GGUF";
const VERSION: u32 = 3;
/// Tensor data starts, and each tensor starts, at a multiple of this many bytes.
const ALIGNMENT: u64 = 32;
/// No string or list in a header that this module reads may be longer: a broken file must not ask for all memory.
const LONGEST: u64 = 1 << 24;

/// A metadata value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// An unsigned number.
    U32(u32),
    /// A signed number.
    I32(i32),
    /// A real number.
    F32(f32),
    /// A flag.
    Bool(bool),
    /// UTF-8 text.
    Text(String),
    /// A list of texts.
    Texts(Vec<String>),
    /// A list of signed numbers.
    I32s(Vec<i32>),
    /// A list of real numbers.
    F32s(Vec<f32>),
}

/// What a file says about one tensor. Row-major with `cols` as the fastest index; `rows` is `None` for a vector.
#[derive(Clone, Debug)]
pub struct TensorInfo {
    /// Its name, such as `blk.0.attn_q.weight`.
    pub name: String,
    /// Number of rows, unless it is a vector.
    pub rows: Option<usize>,
    /// Elements of one row.
    pub cols: usize,
    /// Its sizes as the file names them, fastest first, where it is neither a matrix nor a vector; as many elements as it has.
    pub sizes: Vec<usize>,
    /// How the elements are stored.
    pub quant: Quant,
}

impl TensorInfo {
    /// A tensor stored as `quant`, or as F32 where that is a vector (engines want norms unquantised) or a row does not
    /// fill whole blocks.
    pub fn new(name: impl Into<String>, rows: Option<usize>, cols: usize, quant: Quant) -> Self {
        let quant = if rows.is_none() || !cols.is_multiple_of(quant.block()) { Quant::F32 } else { quant };
        Self { name: name.into(), rows, cols, sizes: Vec::new(), quant }
    }

    /// The same elements under these sizes, fastest first.
    #[must_use]
    pub fn sized(self, sizes: &[usize]) -> Self {
        debug_assert_eq!(sizes.iter().product::<usize>(), self.len(), "{}", self.name);
        Self { sizes: sizes.to_vec(), ..self }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.rows.unwrap_or(1) * self.cols
    }

    /// Whether it has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A tensor with its stored bytes.
#[derive(Clone, Debug)]
pub struct TensorData {
    /// What the file says about it.
    pub info: TensorInfo,
    /// The stored bytes, from [`Quant::encode`].
    pub bytes: Vec<u8>,
}

impl TensorData {
    /// Stores `values` as [`TensorInfo::new`] decides.
    pub fn new(name: impl Into<String>, rows: Option<usize>, cols: usize, quant: Quant, values: &[f32]) -> Self {
        let info = TensorInfo::new(name, rows, cols, quant);
        let bytes = info.quant.encode(values);
        Self { info, bytes }
    }
}

/// What stands before the weights: metadata in file order and the tensors' names, sizes (fastest first) and type codes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Header {
    /// Keys and values.
    pub metadata: Vec<(String, Value)>,
    /// Name, sizes, type code and offset of each tensor.
    pub tensors: Vec<(String, Vec<u64>, u32, u64)>,
}

impl Header {
    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.metadata.iter().find(|(k, _)| k == key).map(|(_, v)| v)
    }
}

/// Writes a whole file from tensors in memory.
///
/// # Errors
/// Those of `out`.
pub fn write(out: &mut impl Write, metadata: &[(String, Value)], tensors: &[TensorData]) -> io::Result<()> {
    let infos: Vec<_> = tensors.iter().map(|tensor| tensor.info.clone()).collect();
    let mut bytes = tensors.iter().map(|tensor| tensor.bytes.as_slice());
    write_streamed(out, metadata, &infos, |_, out| out.write_all(bytes.next().unwrap_or_default()))
}

/// Writes a whole file; `fill` writes the bytes of one tensor after the other, so that no more than it wants is in memory.
///
/// # Errors
/// Those of `out`.
pub fn write_streamed<W: Write>(
    out: &mut W,
    metadata: &[(String, Value)],
    tensors: &[TensorInfo],
    mut fill: impl FnMut(&TensorInfo, &mut W) -> io::Result<()>,
) -> io::Result<()> {
    let mut head = Vec::new();
    head.extend(MAGIC);
    head.extend(VERSION.to_le_bytes());
    head.extend((tensors.len() as u64).to_le_bytes());
    head.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        put_text(&mut head, key);
        put_value(&mut head, value);
    }
    let size = |tensor: &TensorInfo| tensor.quant.stored(tensor.len()) as u64;
    let mut offset = 0u64;
    for tensor in tensors {
        put_text(&mut head, &tensor.name);
        let plain = || [Some(tensor.cols), tensor.rows].into_iter().flatten().collect();
        let sizes = if tensor.sizes.is_empty() { plain() } else { tensor.sizes.clone() };
        head.extend((sizes.len() as u32).to_le_bytes());
        sizes.iter().for_each(|n| head.extend((*n as u64).to_le_bytes()));
        head.extend(tensor.quant.code().to_le_bytes());
        head.extend(offset.to_le_bytes());
        offset = (offset + size(tensor)).next_multiple_of(ALIGNMENT);
    }
    head.resize((head.len() as u64).next_multiple_of(ALIGNMENT) as usize, 0);
    out.write_all(&head)?;
    for tensor in tensors {
        fill(tensor, out)?;
        let gap = size(tensor).next_multiple_of(ALIGNMENT) - size(tensor);
        out.write_all(&[0; ALIGNMENT as usize][..gap as usize])?;
    }
    Ok(())
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    let list = |out: &mut Vec<u8>, kind: u32, len: usize| {
        out.extend(9u32.to_le_bytes());
        out.extend(kind.to_le_bytes());
        out.extend((len as u64).to_le_bytes());
    };
    match value {
        Value::U32(n) => {
            out.extend(4u32.to_le_bytes());
            out.extend(n.to_le_bytes());
        }
        Value::I32(n) => {
            out.extend(5u32.to_le_bytes());
            out.extend(n.to_le_bytes());
        }
        Value::F32(n) => {
            out.extend(6u32.to_le_bytes());
            out.extend(n.to_le_bytes());
        }
        Value::Bool(flag) => {
            out.extend(7u32.to_le_bytes());
            out.push(u8::from(*flag));
        }
        Value::Text(text) => {
            out.extend(8u32.to_le_bytes());
            put_text(out, text);
        }
        Value::Texts(texts) => {
            list(out, 8, texts.len());
            texts.iter().for_each(|text| put_text(out, text));
        }
        Value::I32s(numbers) => {
            list(out, 5, numbers.len());
            numbers.iter().for_each(|n| out.extend(n.to_le_bytes()));
        }
        Value::F32s(numbers) => {
            list(out, 6, numbers.len());
            numbers.iter().for_each(|n| out.extend(n.to_le_bytes()));
        }
    }
}

/// Reads the header of a file that [`write()`] made.
///
/// # Errors
/// `InvalidData` where the file is not such a GGUF file; those of `input`.
pub fn read_header(input: &mut impl Read) -> io::Result<Header> {
    if &take::<4>(input)? != MAGIC || take_u32(input)? != VERSION {
        return Err(broken("not a GGUF file of version 3"));
    }
    let (tensors, keys) = (take_len(input)?, take_len(input)?);
    let mut header = Header::default();
    for _ in 0..keys {
        let key = take_text(input)?;
        let kind = take_u32(input)?;
        header.metadata.push((key, take_value(input, kind)?));
    }
    for _ in 0..tensors {
        let name = take_text(input)?;
        let sizes = take_u32(input)?;
        if sizes > 4 {
            return Err(broken("a tensor has more than four dimensions"));
        }
        let sizes = (0..sizes).map(|_| take_u64(input)).collect::<io::Result<_>>()?;
        header.tensors.push((name, sizes, take_u32(input)?, take_u64(input)?));
    }
    Ok(header)
}

fn take_value(input: &mut impl Read, kind: u32) -> io::Result<Value> {
    Ok(match kind {
        4 => Value::U32(take_u32(input)?),
        5 => Value::I32(take_u32(input)?.cast_signed()),
        6 => Value::F32(f32::from_le_bytes(take(input)?)),
        7 => Value::Bool(take::<1>(input)?[0] != 0),
        8 => Value::Text(take_text(input)?),
        9 => match (take_u32(input)?, take_len(input)?) {
            (8, len) => Value::Texts((0..len).map(|_| take_text(input)).collect::<io::Result<_>>()?),
            (6, len) => Value::F32s((0..len).map(|_| Ok(f32::from_le_bytes(take(input)?))).collect::<io::Result<_>>()?),
            (5, len) => Value::I32s((0..len).map(|_| Ok(take_u32(input)?.cast_signed())).collect::<io::Result<_>>()?),
            (other, _) => return Err(broken(&format!("a list of type {other} is not read here"))),
        },
        other => return Err(broken(&format!("a value of type {other} is not read here"))),
    })
}

fn take<const N: usize>(input: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    input.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn take_u32(input: &mut impl Read) -> io::Result<u32> {
    Ok(u32::from_le_bytes(take(input)?))
}

fn take_u64(input: &mut impl Read) -> io::Result<u64> {
    Ok(u64::from_le_bytes(take(input)?))
}

fn take_len(input: &mut impl Read) -> io::Result<u64> {
    let len = take_u64(input)?;
    if len > LONGEST { Err(broken("a length is beyond reason")) } else { Ok(len) }
}

fn take_text(input: &mut impl Read) -> io::Result<String> {
    let len = take_len(input)?;
    let mut bytes = Vec::new();
    if input.take(len).read_to_end(&mut bytes)? as u64 != len {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    String::from_utf8(bytes).map_err(|_| broken("a text is not UTF-8"))
}

fn broken(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_written_header_reads_back_and_tensors_are_aligned() {
        let metadata: Vec<(String, Value)> = [
            ("a", Value::U32(7)),
            ("b", Value::I32(-7)),
            ("c", Value::F32(0.5)),
            ("d", Value::Bool(true)),
            ("e", Value::Text("zażółć".into())),
            ("f", Value::Texts(vec!["x".into(), String::new()])),
            ("g", Value::I32s(vec![1, -3])),
            ("h", Value::F32s(vec![0.25, -1.0])),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into();
        let norm = TensorData::new("norm", None, 5, Quant::Q8_0, &[1.0; 5]);
        let matrix = TensorData::new("matrix", Some(3), 64, Quant::Q8_0, &[0.25; 192]);
        let mut cube = TensorData::new("cube", Some(2), 6, Quant::F32, &[0.0; 12]);
        cube.info = cube.info.sized(&[2, 3, 2]);
        let mut file = Vec::new();
        write(&mut file, &metadata, &[cube, norm, matrix]).unwrap();
        assert_eq!(file.len() % 32, 0);
        let header = read_header(&mut file.as_slice()).unwrap();
        assert_eq!(header.metadata, metadata);
        assert_eq!(header.tensors[0], ("cube".into(), vec![2, 3, 2], Quant::F32.code(), 0));
        assert_eq!(header.tensors[1], ("norm".into(), vec![5], Quant::F32.code(), 64));
        assert_eq!(header.tensors[2], ("matrix".into(), vec![64, 3], Quant::Q8_0.code(), 96));
        // The matrix takes six blocks of 34 bytes, padded to 224; its first block opens with the scale.
        assert_eq!(file[file.len() - 224..][..2], half::f16::from_f32(0.25 / 127.0).to_le_bytes());
    }

    #[test]
    fn a_broken_file_is_an_error_wherever_it_ends() {
        let mut file = Vec::new();
        let metadata = [("key".to_owned(), Value::Texts(vec!["one".into(), "two".into()]))];
        write(&mut file, &metadata, &[TensorData::new("t", None, 4, Quant::F32, &[0.0; 4])]).unwrap();
        let head = file.len() - 32;
        for end in 0..head - 31 {
            assert!(read_header(&mut &file[..end]).is_err(), "cut at {end}");
        }
        file[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(read_header(&mut file.as_slice()).is_err(), "a count beyond reason");
    }
}
