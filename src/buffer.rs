//! Bytes that are kept for a peer: on the heap, or in a mapping of their own.
//!
//! The heap is quick, and keeps for later what was given back to it. A mapping goes back to the system at
//! once, so that a burst leaves nothing behind.

use std::collections::TryReserveError;
use std::io;
use std::ops::{Deref, Range};

use memmap2::MmapMut;

/// A mapping has whole pages; for less than this it would be a waste.
const SMALLEST_MAPPING: usize = 4 << 10;

/// Bytes with a capacity that is set when it is made, or grown by a copy.
#[derive(Debug)]
pub(crate) enum Buffer {
    Heap(Vec<u8>),
    Mapped { map: MmapMut, length: usize },
}

/// The system has no memory left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NoMemory;

impl From<TryReserveError> for NoMemory {
    fn from(_: TryReserveError) -> Self {
        NoMemory
    }
}

impl From<io::Error> for NoMemory {
    fn from(_: io::Error) -> Self {
        NoMemory
    }
}

impl Buffer {
    /// How many bytes a buffer takes that has room for so many.
    pub(crate) fn size_for(capacity: usize, mapped: bool) -> usize {
        if mapped && capacity >= SMALLEST_MAPPING {
            capacity.next_multiple_of(SMALLEST_MAPPING)
        } else {
            capacity
        }
    }

    /// The capacity of the largest buffer that takes no more than so many bytes.
    pub(crate) fn capacity_in(room: usize) -> usize {
        if room < SMALLEST_MAPPING { room } else { room - room % SMALLEST_MAPPING }
    }

    /// Room for so many bytes: in a mapping, where one is wanted and worth it.
    pub(crate) fn with_capacity(capacity: usize, mapped: bool) -> Result<Buffer, NoMemory> {
        if mapped && capacity >= SMALLEST_MAPPING {
            let map = MmapMut::map_anon(Buffer::size_for(capacity, true))?;
            return Ok(Buffer::Mapped { map, length: 0 });
        }
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(capacity)?;
        Ok(Buffer::Heap(bytes))
    }

    /// Makes room for so many bytes in all, if there is not.
    pub(crate) fn grow(&mut self, capacity: usize, mapped: bool) -> Result<(), NoMemory> {
        if let Buffer::Heap(bytes) = self
            && !(mapped && capacity >= SMALLEST_MAPPING)
        {
            return Ok(bytes.try_reserve_exact(capacity.saturating_sub(bytes.len()))?);
        }
        if capacity > self.capacity() {
            let mut grown = Buffer::with_capacity(capacity, true)?;
            grown.extend(self);
            *self = grown;
        }
        Ok(())
    }

    /// Appends bytes for which there is room.
    pub(crate) fn extend(&mut self, bytes: &[u8]) {
        match self {
            Buffer::Heap(heap) => {
                debug_assert!(heap.len() + bytes.len() <= heap.capacity(), "it would grow");
                heap.extend_from_slice(bytes);
            }
            Buffer::Mapped { map, length } => {
                let place: Range<usize> = *length..*length + bytes.len();
                *length = place.end;
                map[place].copy_from_slice(bytes);
            }
        }
    }

    /// The bytes of memory that it takes.
    pub(crate) fn capacity(&self) -> usize {
        match self {
            Buffer::Heap(bytes) => bytes.capacity(),
            Buffer::Mapped { map, .. } => map.len(),
        }
    }
}

impl Default for Buffer {
    fn default() -> Self {
        Buffer::Heap(Vec::new())
    }
}

impl Clone for Buffer {
    fn clone(&self) -> Self {
        Buffer::Heap(self.to_vec())
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Buffer::Heap(bytes) => bytes,
            Buffer::Mapped { map, length } => &map[..*length],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_holds_what_it_is_given_wherever_that_is() {
        for (capacity, mapped, takes) in [
            (0, true, 0),
            (9, false, 9),
            (9, true, 9),
            (4_095, true, 4_095),
            (4_096, true, 4_096),
            (4_097, true, 8_192),
            (100_000, false, 100_000),
        ] {
            let mut buffer = Buffer::with_capacity(capacity, mapped).unwrap();
            assert_eq!(buffer.capacity(), takes);
            assert_eq!(Buffer::size_for(capacity, mapped), takes);
            let bytes: Vec<u8> = (0..capacity).map(|n| n as u8).collect();
            let (head, tail) = bytes.split_at(capacity / 3);
            buffer.extend(head);
            assert_eq!(&buffer[..], head);
            buffer.extend(tail);
            assert_eq!(&buffer[..], &bytes[..]);
        }
        for (room, capacity) in [(0, 0), (4_095, 4_095), (4_096, 4_096), (9_000, 8_192)] {
            assert_eq!(Buffer::capacity_in(room), capacity);
        }
        let mut grown = Buffer::default();
        for (capacity, mapped) in
            [(3, true), (2_000, true), (5_000, true), (6_000, false), (1, true)]
        {
            grown.grow(capacity, mapped).unwrap();
            assert!(grown.capacity() >= capacity);
            grown.extend(b"a");
        }
        assert_eq!((&grown[..], grown.capacity()), (&b"aaaaa"[..], 8_192));
        for mapped in [false, true] {
            assert_eq!(Buffer::default().grow(1 << 62, mapped), Err(NoMemory));
        }
    }
}
