//! Two bytes that say how much data follows the header, then the header's JSON: written back, it is the same header.

use taskvec_core::header;

pub(crate) fn check(input: &[u8]) {
    let Some((data_len, json)) = input.split_first_chunk::<2>() else { return };
    let file_len = 8 + json.len() as u64 + u64::from(u16::from_le_bytes(*data_len));
    let header = match header::parse(json, file_len) {
        Ok(header) => header,
        Err(error) => return super::assert_told(&error),
    };
    let mut at = 0;
    for tensor in &header.tensors {
        assert_eq!(tensor.begin, at);
        assert_eq!(tensor.dtype.bytes(&tensor.shape), Some(tensor.end - tensor.begin));
        at = tensor.end;
    }
    assert_eq!(header.data_start + at, file_len);

    let rows = header.tensors.iter().map(|tensor| (tensor.name.as_str(), tensor.dtype, tensor.shape.as_slice()));
    let metadata: Vec<_> = header.metadata.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    let written = header::encode(rows, &metadata, 8);
    let length = header::length(written.first_chunk().expect("a prefix"), Some(written.len() as u64 + at));
    assert_eq!(length.expect("a true length"), written.len() as u64 - 8);
    let again = header::parse(&written[8..], written.len() as u64 + at).expect("what is written is read");
    assert_eq!((again.tensors, again.metadata), (header.tensors, header.metadata));
}
