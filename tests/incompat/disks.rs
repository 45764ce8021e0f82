//! The guest's disks, as the destination sees them: under the same paths, in another view of the
//! files.

use std::fs::File;

use vmm::devices::virtio::block::DiskLock;

use crate::catalogue::{Cell, Pair, cell, has_views};
use crate::support::kvm;

const DATA: &str = "umount -l $d/data.img";
const RO: &str = "umount -l $d/ro.img";
const PATH: &str = "at the same path";
const SAME: &str = "same storage";

/// Injected by lines of shell, in which `$d` is the directory of the disks and `$0/files` one that
/// only beta sees.
fn disk(name: &str, code: &'static str, parts: [&str; 4], set: &'static str, undo: &str) -> Cell {
    let undo = undo.to_owned();
    cell(name, code, parts, move |pair| {
        let dir = pair.disk.parent().unwrap().display().to_string();
        let lines = |text: &str| format!("d={dir}; {text}");
        pair.view(&lines(set), &lines(&undo))
    })
}

/// Files that are no disk, or not one that the guest can use.
fn unusable() -> Vec<Cell> {
    vec![
        disk(
            "the directory is empty",
            "incompatible",
            ["shared disk", "data.img", "has not", PATH],
            "mkdir -p $0/files/empty; mount --bind $0/files/empty $d",
            "umount -l $d",
        ),
        disk(
            "a disk of another size",
            "incompatible",
            ["size in sectors", "2048", "4096", "same disk"],
            "truncate -s 2M $0/files/big; mount --bind $0/files/big $d/data.img",
            DATA,
        ),
        disk(
            "a disk with a ragged end",
            "bad-disk",
            ["data.img", "1000 bytes", "512", "grow it"],
            "truncate -s 1000 $0/files/ragged; mount --bind $0/files/ragged $d/data.img",
            DATA,
        ),
        disk(
            "an empty file",
            "bad-disk",
            ["data.img", "", "empty", "truncate"],
            ": > $0/files/nothing; mount --bind $0/files/nothing $d/data.img",
            DATA,
        ),
        disk(
            "a file system that is read-only",
            "bad-disk",
            ["data.img", "", "read-only", "writable"],
            "mount --bind $d $d; mount -o remount,ro,bind $d",
            "umount -l $d",
        ),
        disk(
            "a file system without direct I/O",
            "bad-disk",
            ["data.img", "direct I/O", "does not support", "cache=writeback"],
            "mkdir -p $0/files/ram; mount -t ramfs none $0/files/ram; cp $d/* $0/files/ram; \
             mount --bind $0/files/ram $d",
            "umount -l $d; umount -l $0/files/ram",
        ),
        disk(
            "a directory in the place of a disk",
            "bad-disk",
            ["ro.img", "regular file", "a directory", "regular file"],
            "mkdir -p $0/files/all/ro.img; cp -a $d/data* $0/files/all; mount --bind $0/files/all $d",
            "umount -l $d; rm -r $0/files/all",
        ),
    ]
}

/// Other storage, or other content, under the same path.
fn another() -> Vec<Cell> {
    vec![
        disk(
            "other storage behind the same path",
            "incompatible",
            ["data.img", "what the source wrote", "cannot be read here", SAME],
            "cp -r $d $0/files/copy; mount --bind $0/files/copy $d",
            "umount -l $d; rm -r $0/files/copy",
        ),
        disk(
            "other storage without a record",
            "bad-disk",
            ["data.img.migrate", "other host", "there is no", SAME],
            "mkdir $0/files/bare; cp $d/*.img $0/files/bare; mount --bind $0/files/bare $d",
            "umount -l $d; rm -r $0/files/bare",
        ),
        disk(
            "a record that is none",
            "bad-disk",
            ["data.img.migrate", "", "not usable", "move that file away"],
            "head -c 8192 /dev/zero | tr '\\0' x > $0/files/x; \
             mount --bind $0/files/x $d/data.img.migrate",
            "umount -l $d/data.img.migrate",
        ),
        disk(
            "a read-only disk of another size",
            "incompatible",
            ["size in sectors", "2048", "6144", "same disk"],
            "truncate -s 3M $0/files/long; mount --bind $0/files/long $d/ro.img",
            RO,
        ),
        disk(
            "a read-only disk with other content",
            "incompatible",
            ["ro.img", "was", "is", SAME],
            "cp $d/ro.img $0/files/other; printf x | dd of=$0/files/other conv=notrunc 2>/dev/null; \
             touch -r $d/ro.img $0/files/other; mount --bind $0/files/other $d/ro.img",
            RO,
        ),
    ]
}

/// Locks that somebody else has.
fn taken() -> Vec<Cell> {
    vec![
        cell(
            "another host is about to take the disk",
            "incompatible",
            ["data.img", "another guest", "locked", "stop"],
            |pair| {
                let file = File::options().read(true).write(true).open(&pair.disk).unwrap();
                let lock = DiskLock::new(&file, &pair.disk, false).unwrap();
                lock.take_next().unwrap();
                Box::new(move |_| drop((lock, file)))
            },
        ),
        cell(
            "somebody writes to a disk that is read-only for the guest",
            "incompatible",
            ["ro.img", "locked", "another guest", "stop"],
            |pair: &mut Pair| {
                let file = File::options().read(true).write(true).open(&pair.read_only).unwrap();
                let lock = DiskLock::new(&file, &pair.read_only, false).unwrap();
                lock.take_next().unwrap();
                Box::new(move |_| drop((lock, file)))
            },
        ),
    ]
}

#[test]
fn disks_of_the_destination() {
    if !kvm() {
        return;
    }
    if !has_views() {
        eprintln!("SKIPPED: no mount namespace can be made: run this test as root");
        return;
    }
    let cells = [unusable(), another(), taken()].into_iter().flatten().collect();
    Pair::new(&[]).try_all("disks", cells);
}
