//! The guest as an ELF file with the PVH note, for our own loader and other VMMs' (tried: QEMU).

use super::layout::{BSS_END, ENTRY, LOAD};

const EHDR_LEN: u16 = 64;
const PHDR_LEN: u16 = 56;
const PHDRS: u16 = 2;
/// The image starts on a page of the file: some loaders map instead of copying.
const IMAGE_OFFSET: u64 = 0x1000;
const NOTE_OFFSET: u64 = EHDR_LEN as u64 + (PHDR_LEN * PHDRS) as u64;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;

struct Writer(Vec<u8>);

impl Writer {
    fn u16(&mut self, value: u16) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }
    fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }
    fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }
    /// One program header; `bounds` are file size, memory size and alignment.
    fn program_header(&mut self, kind: u32, flags: u32, offset: u64, gpa: u64, bounds: [u64; 3]) {
        self.u32(kind);
        self.u32(flags);
        self.u64(offset);
        self.u64(gpa); // virtual
        self.u64(gpa); // physical
        for bound in bounds {
            self.u64(bound);
        }
    }
}

/// The ELF64 file: one loadable segment at [`LOAD`], zeroed memory behind it, the PVH entry note.
pub fn elf() -> Vec<u8> {
    wrap(super::image::image())
}

fn wrap(image: &[u8]) -> Vec<u8> {
    // The descriptor is eight bytes, not four: QEMU reads a native word.
    let mut note = Writer(Vec::new());
    note.u32(4);
    note.u32(8);
    note.u32(XEN_ELFNOTE_PHYS32_ENTRY);
    note.0.extend_from_slice(b"Xen\0");
    note.u64(ENTRY);
    let note = note.0;

    let mut file = Writer(vec![0x7F, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    file.u16(2); // ET_EXEC
    file.u16(62); // EM_X86_64
    file.u32(1);
    file.u64(ENTRY);
    file.u64(u64::from(EHDR_LEN));
    file.u64(0); // no sections
    file.u32(0);
    file.u16(EHDR_LEN);
    file.u16(PHDR_LEN);
    file.u16(PHDRS);
    file.u16(64);
    file.u16(0);
    file.u16(0);
    let image_len = image.len() as u64;
    file.program_header(PT_LOAD, 7, IMAGE_OFFSET, LOAD, [image_len, BSS_END - LOAD, 0x1000]);
    let note_len = note.len() as u64;
    file.program_header(PT_NOTE, 4, NOTE_OFFSET, 0, [note_len, note_len, 4]);
    let mut file = file.0;
    file.extend_from_slice(&note);
    file.resize(file.len().next_multiple_of(0x1000), 0);
    file.extend_from_slice(image);
    file
}

#[cfg(test)]
mod tests {
    use super::*;

    fn u64_at(file: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(file[at..at + 8].try_into().unwrap())
    }

    #[test]
    fn the_headers_agree_with_the_contents() {
        let file = elf();
        let image = super::super::image::image();
        let load = usize::from(EHDR_LEN);
        let offset = u64_at(&file, load + 8);
        assert_eq!(offset, IMAGE_OFFSET);
        assert_eq!(&file[0x1000..], image);
        assert_eq!(u64_at(&file, load + 24), LOAD);
        assert!(u64_at(&file, load + 40) >= image.len() as u64);
        let note = usize::try_from(u64_at(&file, load + 56 + 8)).unwrap();
        assert_eq!(&file[note + 12..note + 16], b"Xen\0");
        assert_eq!(u64_at(&file, note + 16), ENTRY);
    }
}
