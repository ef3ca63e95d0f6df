//! A disk with its cache: what is durable, what was written and not yet synced, and what a power cut makes of both.
//!
//! A file's bytes are durable after a sync of the file, a name after a sync of its folder, and nothing else is. Owns the
//! damages; never runs the program.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use super::trace::Event;
use crate::chance::Chance;

const PAGE: usize = 4096;
const SECTOR: usize = 512;

/// What happens to that which was not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damage {
    /// All of it is lost.
    Dropped,
    /// Each page of each write arrived or did not; names up to some point.
    Subset,
    /// All arrived, but of the last write only some sectors.
    Torn,
    /// Each page arrived, did not, or holds noise.
    Garbage,
    /// All arrived.
    Kept,
}

impl Damage {
    /// Every one.
    pub const ALL: [Damage; 5] = [Damage::Dropped, Damage::Subset, Damage::Torn, Damage::Garbage, Damage::Kept];
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Node {
    File(usize),
    Folder(usize),
}

#[derive(Debug, Clone)]
enum Change {
    Bytes(u64, Arc<[u8]>),
    Length(u64),
}

#[derive(Debug, Default)]
struct Content {
    durable: Vec<u8>,
    now: Vec<u8>,
    pending: Vec<Change>,
}

type Names = BTreeMap<String, Node>;

#[derive(Debug, Clone)]
enum Naming {
    Add(String, Node),
    Remove(String),
    Move(String, String),
}

#[derive(Debug, Default)]
struct Folder {
    durable: Names,
    now: Names,
    pending: Vec<Naming>,
}

/// The watched folder, at one point of the trace.
#[derive(Debug)]
pub struct Disk {
    files: Vec<Content>,
    folders: Vec<Folder>,
    open: HashMap<i32, Node>,
    /// The file that was written last: the one that is torn.
    last: Option<usize>,
}

impl Default for Disk {
    fn default() -> Disk {
        Disk { files: Vec::new(), folders: vec![Folder::default()], open: HashMap::new(), last: None }
    }
}

impl Disk {
    /// Begins with a folder as it stands on disk, all of it durable.
    pub fn load(&mut self, folder: &Path) -> std::io::Result<()> {
        self.load_into(0, folder)
    }

    fn load_into(&mut self, at: usize, folder: &Path) -> std::io::Result<()> {
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            let node = if entry.file_type()?.is_dir() {
                self.folders.push(Folder::default());
                let inner = self.folders.len() - 1;
                self.load_into(inner, &entry.path())?;
                Node::Folder(inner)
            } else {
                let bytes = std::fs::read(entry.path())?;
                self.files.push(Content { durable: bytes.clone(), now: bytes, pending: Vec::new() });
                Node::File(self.files.len() - 1)
            };
            let name = entry.file_name().to_string_lossy().into_owned();
            self.folders[at].durable.insert(name.clone(), node);
            self.folders[at].now.insert(name, node);
        }
        Ok(())
    }

    /// The next event of the trace.
    pub fn apply(&mut self, event: &Event) {
        match event {
            Event::Open { fd, path, create, truncate } => self.opened(*fd, path, *create, *truncate),
            Event::Close { fd } => drop(self.open.remove(fd)),
            Event::Write { fd, at, bytes } => self.change(*fd, Change::Bytes(*at, bytes.clone())),
            Event::Truncate { fd, to } => self.change(*fd, Change::Length(*to)),
            Event::Sync { fd } => self.sync(*fd),
            Event::Unlink { path } => self.name(path, Naming::Remove),
            Event::Mkdir { path } => {
                self.folders.push(Folder::default());
                let node = Node::Folder(self.folders.len() - 1);
                self.name(path, |name| Naming::Add(name, node));
            }
            Event::Rename { from, to } => self.rename(from, to),
            Event::Link { from, to } => {
                if let Some(node) = self.find(from) {
                    self.name(to, |name| Naming::Add(name, node));
                }
            }
            Event::Mark { .. } => {}
        }
    }

    fn find(&self, path: &str) -> Option<Node> {
        let mut at = Node::Folder(0);
        for part in path.split('/').filter(|part| !part.is_empty()) {
            let Node::Folder(folder) = at else { return None };
            at = *self.folders[folder].now.get(part)?;
        }
        Some(at)
    }

    fn parent<'a>(&self, path: &'a str) -> (usize, &'a str) {
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        match self.find(folder) {
            Some(Node::Folder(folder)) => (folder, name),
            _ => panic!("{path} stands in no folder of the trace"),
        }
    }

    fn name(&mut self, path: &str, how: impl FnOnce(String) -> Naming) {
        let (folder, name) = self.parent(path);
        let naming = how(name.to_owned());
        let folder = &mut self.folders[folder];
        naming.apply(&mut folder.now);
        folder.pending.push(naming);
    }

    fn rename(&mut self, from: &str, to: &str) {
        let ((source, name), (target, other)) = (self.parent(from), self.parent(to));
        let node = self.find(from).expect("what is renamed is there");
        if source == target {
            let other = other.to_owned();
            self.name(from, |name| Naming::Move(name, other));
        } else {
            // Two folders are two syncs. The new name is there before the old one goes.
            let (name, other) = (name.to_owned(), other.to_owned());
            self.name(to, |_| Naming::Add(other, node));
            self.name(from, |_| Naming::Remove(name));
        }
    }

    fn opened(&mut self, fd: i32, path: &str, create: bool, truncate: bool) {
        let known = self.find(path);
        let node = known.unwrap_or_else(|| {
            assert!(create, "{path} is opened and was never made");
            self.files.push(Content::default());
            let node = Node::File(self.files.len() - 1);
            self.name(path, |name| Naming::Add(name, node));
            node
        });
        self.open.insert(fd, node);
        if truncate && known.is_some() {
            self.change(fd, Change::Length(0));
        }
    }

    fn change(&mut self, fd: i32, change: Change) {
        let Some(Node::File(file)) = self.open.get(&fd).copied() else { return };
        let content = &mut self.files[file];
        change.apply(&mut content.now);
        content.pending.push(change);
        self.last = Some(file);
    }

    fn sync(&mut self, fd: i32) {
        match self.open.get(&fd).copied() {
            Some(Node::File(file)) => {
                let content = &mut self.files[file];
                for change in content.pending.drain(..) {
                    change.apply(&mut content.durable);
                }
            }
            Some(Node::Folder(folder)) => {
                let folder = &mut self.folders[folder];
                folder.durable.clone_from(&folder.now);
                folder.pending.clear();
            }
            None => {}
        }
    }

    /// Writes into `target`, which is empty, what a power cut at this point leaves.
    pub fn write(&self, target: &Path, damage: Damage, chance: &mut Chance) -> std::io::Result<()> {
        self.write_folder(0, target, damage, chance)
    }

    fn write_folder(&self, folder: usize, target: &Path, damage: Damage, chance: &mut Chance) -> std::io::Result<()> {
        for (name, node) in self.folders[folder].names(damage, chance) {
            let path = target.join(name);
            match node {
                Node::Folder(inner) => {
                    std::fs::create_dir(&path)?;
                    self.write_folder(inner, &path, damage, chance)?;
                }
                Node::File(file) => {
                    let torn = damage == Damage::Torn && self.last == Some(file);
                    self.files[file].write(&path, damage, torn, chance)?;
                }
            }
        }
        Ok(())
    }
}

impl Naming {
    fn apply(&self, names: &mut Names) {
        match self {
            Naming::Add(name, node) => drop(names.insert(name.clone(), *node)),
            Naming::Remove(name) => drop(names.remove(name)),
            Naming::Move(from, to) => {
                if let Some(node) = names.remove(from) {
                    names.insert(to.clone(), node);
                }
            }
        }
    }
}

impl Folder {
    fn names(&self, damage: Damage, chance: &mut Chance) -> Names {
        let kept = match damage {
            Damage::Dropped => 0,
            Damage::Subset | Damage::Garbage => chance.below(self.pending.len() as u64 + 1) as usize,
            Damage::Torn | Damage::Kept => self.pending.len(),
        };
        let mut names = self.durable.clone();
        self.pending[..kept].iter().for_each(|naming| naming.apply(&mut names));
        names
    }
}

impl Content {
    fn write(&self, path: &Path, damage: Damage, torn: bool, chance: &mut Chance) -> std::io::Result<()> {
        if self.pending.is_empty() || damage == Damage::Dropped {
            return std::fs::write(path, &self.durable);
        }
        if damage == Damage::Kept || damage == Damage::Torn && !torn {
            return std::fs::write(path, &self.now);
        }
        let mut bytes = self.durable.clone();
        let last = self.pending.len() - 1;
        // Sometimes nearly all arrives, sometimes nearly nothing: both find other faults than the half does.
        let arrives = [2, 8, 14][chance.below(3) as usize];
        for (at, pending) in self.pending.iter().enumerate() {
            match (damage, pending) {
                (Damage::Torn, Change::Bytes(offset, data)) if at == last => {
                    let sectors = chance.below((data.len() / SECTOR) as u64 + 1) as usize;
                    put(&mut bytes, *offset, &data[..sectors * SECTOR]);
                }
                (Damage::Torn, whole) => whole.apply(&mut bytes),
                (_, Change::Length(_)) => {
                    if chance.below(16) < arrives {
                        pending.apply(&mut bytes);
                    }
                }
                (_, Change::Bytes(offset, data)) => {
                    pages(*offset, data, |place, piece| {
                        if chance.below(16) < arrives {
                            put(&mut bytes, place, piece);
                        } else if damage == Damage::Garbage && chance.one_in(2) {
                            put(&mut bytes, place, &crate::chance::body(chance.next() >> 1, piece.len()));
                        }
                    });
                }
            }
        }
        std::fs::write(path, &bytes)
    }
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Change::Bytes(at, data) => put(bytes, *at, data),
            Change::Length(to) => bytes.resize(*to as usize, 0),
        }
    }
}

fn put(bytes: &mut Vec<u8>, at: u64, data: &[u8]) {
    let (from, to) = (at as usize, at as usize + data.len());
    if bytes.len() < to {
        bytes.resize(to, 0);
    }
    bytes[from..to].copy_from_slice(data);
}

/// The parts of a write as they lie in the file's pages.
fn pages(at: u64, data: &[u8], mut each: impl FnMut(u64, &[u8])) {
    let (mut at, mut rest) = (at, data);
    while !rest.is_empty() {
        let room = PAGE - at as usize % PAGE;
        let (part, next) = rest.split_at(room.min(rest.len()));
        each(at, part);
        (at, rest) = (at + part.len() as u64, next);
    }
}
