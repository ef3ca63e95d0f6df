//! One fingerprint for one JSON text, however it is laid out: blanks outside texts and the order of keys do not count.
//!
//! Owns that fingerprint. Takes pieces as they come and builds no tree: of an object only a sum for each member is kept
//! until it closes. Never judges the text: whoever asks has had it checked.

use sha2::{Digest, Sha256};

/// Members of all objects that are open at the same time. A sum for each is kept until its object closes: 160 KiB at
/// most. What has more is no request that anybody repeats by hand, and gets no fingerprint.
pub const MEMBERS_MAX: usize = 4096;

/// A member: enough of its name's sum to put all in order, and the sum of name and value.
type Member = ([u8; 8], [u8; 32]);

/// What is open.
enum Open {
    List,
    /// Its finished members, and how the running one is called once its name is known.
    Object {
        members: Vec<Member>,
        name: Option<[u8; 8]>,
    },
}

/// The fingerprint so far.
pub struct Canon {
    /// What is being summed: the whole text, and one for each member that is being read.
    sums: Vec<Sha256>,
    open: Vec<Open>,
    in_text: bool,
    escaped: bool,
    /// The next text is a member's name.
    before_name: bool,
    members: usize,
    too_many: bool,
}

impl Default for Canon {
    fn default() -> Self {
        Canon {
            sums: vec![Sha256::new()],
            open: Vec::new(),
            in_text: false,
            escaped: false,
            before_name: false,
            members: 0,
            too_many: false,
        }
    }
}

impl Canon {
    /// The next piece of the text.
    pub fn feed(&mut self, mut rest: &[u8]) {
        while !self.too_many
            && let Some(first) = rest.first()
        {
            let taken = if self.in_text { self.text(rest) } else { self.between(*first, rest) };
            rest = &rest[taken..];
        }
    }

    /// The fingerprint of all that was fed; `None` where it has too many members.
    pub fn finish(mut self) -> Option<[u8; 32]> {
        let whole = self.sums.pop().filter(|_| !self.too_many && self.sums.is_empty())?;
        Some(whole.finalize().into())
    }

    fn sum(&mut self, bytes: &[u8]) {
        if let Some(sum) = self.sums.last_mut() {
            sum.update(bytes);
        }
    }

    /// Bytes of a text up to its end, or to what must be looked at by itself.
    fn text(&mut self, rest: &[u8]) -> usize {
        if std::mem::take(&mut self.escaped) {
            self.sum(&rest[..1]);
            return 1;
        }
        let plain = rest.iter().position(|b| matches!(b, b'"' | b'\\')).unwrap_or(rest.len());
        let taken = (plain + 1).min(rest.len());
        self.sum(&rest[..taken]);
        match rest.get(plain) {
            Some(b'"') => self.in_text = false,
            Some(_) => self.escaped = true,
            None => {}
        }
        taken
    }

    fn between(&mut self, byte: u8, rest: &[u8]) -> usize {
        match byte {
            b' ' | b'\t' | b'\n' | b'\r' => {}
            b'"' => {
                if std::mem::take(&mut self.before_name) {
                    self.sums.push(Sha256::new());
                }
                self.sum(b"\"");
                self.in_text = true;
            }
            b'{' => {
                self.open.push(Open::Object { members: Vec::new(), name: None });
                self.before_name = true;
            }
            b'[' => {
                self.sum(b"[");
                self.open.push(Open::List);
            }
            b':' => self.name_done(),
            b',' => self.comma(),
            b'}' => self.object_done(),
            b']' => {
                self.open.pop();
                self.sum(b"]");
            }
            _ => {
                let ends = |b: &u8| matches!(b, b' ' | b'\t' | b'\n' | b'\r' | b',' | b']' | b'}' | b'"');
                let taken = rest.iter().position(ends).unwrap_or(rest.len()).max(1);
                self.sum(&rest[..taken]);
                return taken;
            }
        }
        1
    }

    /// Members are put in order by their names, so that a name that stands there twice keeps its order.
    fn name_done(&mut self) {
        let sum = self.sums.last().map(|sum| sum.clone().finalize());
        self.sum(b":");
        if let (Some(sum), Some(Open::Object { name, .. })) = (sum, self.open.last_mut()) {
            let mut first = [0; 8];
            first.copy_from_slice(&sum[..8]);
            *name = Some(first);
        }
    }

    fn comma(&mut self) {
        if matches!(self.open.last(), Some(Open::List)) {
            self.sum(b",");
        } else {
            self.member_done();
            self.before_name = true;
        }
    }

    fn member_done(&mut self) {
        let Some(Open::Object { members, name }) = self.open.last_mut() else { return };
        let Some(name) = name.take() else { return };
        let Some(sum) = self.sums.pop() else { return };
        members.push((name, sum.finalize().into()));
        self.members += 1;
        self.too_many |= self.members > MEMBERS_MAX;
    }

    fn object_done(&mut self) {
        self.member_done();
        self.before_name = false;
        let Some(Open::Object { mut members, .. }) = self.open.pop() else { return };
        members.sort_by_key(|(name, _)| *name);
        self.members = self.members.saturating_sub(members.len());
        self.sum(b"{");
        self.sum(&(members.len() as u64).to_le_bytes());
        for (_, sum) in &members {
            self.sum(sum);
        }
        self.sum(b"}");
    }
}
