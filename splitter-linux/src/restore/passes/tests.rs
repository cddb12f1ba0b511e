use std::cell::{Cell, RefCell};
use std::io;
use std::path::Path;

use tidemark_proto::pieces::{HASH_BYTES, HashKey, ZEROES, pack};

use super::*;

const KEY: HashKey = HashKey([9; 32]);
const PIECE: usize = 64 << 10;
const MIB: usize = 1 << 20;

/// A disk in memory that counts what is written, and may fail or forget.
struct Memory {
    content: RefCell<Vec<u8>>,
    written: Cell<u64>,
    /// Writes that are still taken.
    writes_left: Cell<u32>,
    /// A write at this place is acknowledged and lost.
    forgets: Option<u64>,
}

impl Memory {
    fn new(content: Vec<u8>) -> Self {
        let content = RefCell::new(content);
        Self { content, written: Cell::new(0), writes_left: Cell::new(u32::MAX), forgets: None }
    }
}

impl Target for Memory {
    fn path(&self) -> &Path {
        Path::new("memory")
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let at = usize::try_from(offset).unwrap();
        buffer.copy_from_slice(&self.content.borrow()[at..at + buffer.len()]);
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let left = self.writes_left.get();
        self.writes_left.set(left.checked_sub(1).ok_or(io::ErrorKind::BrokenPipe)?);
        self.written.set(self.written.get() + data.len() as u64);
        if self.forgets != Some(offset) {
            let at = usize::try_from(offset).unwrap();
            self.content.borrow_mut()[at..at + data.len()].copy_from_slice(data);
        }
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, bytes: u64) -> io::Result<()> {
        self.write_at(offset, &vec![0; usize::try_from(bytes).unwrap()])
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

/// The appliance, with a disk of its own.
struct Truth {
    disk: Vec<u8>,
    asked: VecDeque<RestoreQuestion>,
    sent: u64,
    /// Changes an answer before it is given.
    spoil: fn(&mut RestoreAnswer),
}

impl Truth {
    fn new(disk: &[u8]) -> Self {
        Self { disk: disk.to_vec(), asked: VecDeque::new(), sent: 0, spoil: |_| {} }
    }
}

impl Answers for Truth {
    async fn ask(&mut self, question: RestoreQuestion) -> Result<(), RestoreError> {
        self.asked.push_back(question);
        assert!(self.asked.len() <= RESTORE_QUESTIONS_MAX);
        Ok(())
    }

    async fn answer(&mut self) -> Result<RestoreAnswer, RestoreError> {
        let question = self.asked.pop_front().expect("an answer is waited for that nobody asked for");
        let (mut differs, mut zero, mut data) = (Vec::new(), Vec::new(), Vec::new());
        let from = usize::try_from(question.offset).unwrap();
        for (piece, hash) in self.disk[from..].chunks(PIECE).zip(question.hashes.chunks(HASH_BYTES)) {
            let ours = KEY.stand_in(piece);
            differs.push(ours[..] != *hash);
            zero.push(ours[..] != *hash && ours == ZEROES);
            if ours[..] != *hash && ours != ZEROES && !question.compare_only {
                data.extend_from_slice(piece);
            }
        }
        self.sent += data.len() as u64;
        let mut answer = RestoreAnswer {
            offset: question.offset,
            differs: pack(&differs).into(),
            zero: pack(&zero).into(),
            data: data.into(),
        };
        (self.spoil)(&mut answer);
        Ok(answer)
    }
}

fn opened(disk: &[u8]) -> Opened {
    Opened {
        vm: "web-1".into(),
        disk: "disk-1".into(),
        lsn: 7,
        time_us: 0,
        size_bytes: disk.len() as u64,
        warnings: Vec::new(),
        key: KEY,
    }
}

/// Forty megabytes and a bit: more than may be asked about at once. Each piece is of its own, one in three is zeroes.
fn disk() -> Vec<u8> {
    let mut disk = vec![0; 40 * MIB + 3 * PIECE + 512];
    for (index, piece) in disk.chunks_mut(PIECE).enumerate().filter(|(index, _)| index % 3 != 0) {
        piece.fill(u8::try_from(index % 251 + 1).unwrap());
    }
    disk
}

fn run<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
    runtime.block_on(work)
}

fn silent(_: Phase, _: u64, _: u64) {}

#[test]
fn a_target_becomes_what_was_asked_for_and_the_same_again_costs_nothing() {
    let disk = disk();
    let old: Vec<u8> = disk.iter().map(|byte| byte.wrapping_add(1)).chain([5; 4096]).collect();
    let mut target = Memory::new(old);
    let mut truth = Truth::new(&disk);
    let fetched = run(async {
        let fetched = fetch(&mut truth, &mut target, &opened(&disk), &silent).await.unwrap();
        assert_eq!(compare(&mut truth, &target, &opened(&disk), &silent).await.unwrap(), None);
        fetched
    });
    assert!(target.content.borrow()[..disk.len()] == disk[..]);
    assert_eq!(target.content.borrow()[disk.len()..], [5; 4096], "beyond the disk");
    assert_eq!(fetched.fetched_bytes + fetched.zeroed_bytes, disk.len() as u64);
    assert_eq!(truth.sent, fetched.fetched_bytes);
    target.written.set(0);
    let again = run(fetch(&mut truth, &mut target, &opened(&disk), &silent)).unwrap();
    assert_eq!((again, target.written.get()), (Fetched::default(), 0));
}

#[test]
fn an_interrupted_restore_says_so_on_the_disk_and_goes_on() {
    let disk = disk();
    // The note, then by turns a run of two pieces of data and one of zeroes.
    for writes in [1, 4, 8] {
        let mut target = Memory::new(vec![255; disk.len()]);
        let mut truth = Truth::new(&disk);
        target.writes_left.set(writes);
        let error = run(fetch(&mut truth, &mut target, &opened(&disk), &silent)).unwrap_err();
        assert!(error.to_string().contains("cannot write memory"), "{error}");
        assert!(target.content.borrow().starts_with(NOTE));
        let mut truth = Truth::new(&disk);
        target.writes_left.set(u32::MAX);
        run(fetch(&mut truth, &mut target, &opened(&disk), &silent)).unwrap();
        assert!(*target.content.borrow() == disk);
        // What was written before is not fetched again; the first megabyte is, it was withheld.
        let data: u64 =
            disk.chunks(PIECE).filter(|piece| piece[0] != 0).map(|piece| piece.len() as u64).sum();
        let kept = u64::from(writes / 2) * 2 * PIECE as u64;
        assert_eq!(truth.sent, data - kept, "{writes}");
    }
}

/// The negative control of the second pass: a disk that loses a write is found.
#[test]
fn a_disk_that_forgets_is_found() {
    let disk = disk();
    let mut target = Memory::new(vec![255; disk.len()]);
    target.forgets = Some(16 * PIECE as u64);
    let mut truth = Truth::new(&disk);
    let found = run(async {
        fetch(&mut truth, &mut target, &opened(&disk), &silent).await.unwrap();
        compare(&mut truth, &target, &opened(&disk), &silent).await.unwrap()
    });
    // Two pieces of data lie side by side there and were one write.
    assert_eq!(found, Some((16 * PIECE as u64, 2 * PIECE as u64)));
}

#[test]
fn answers_that_make_no_sense_end_it_before_the_disk_is_called_restored() {
    let disk = disk();
    let spoils: [fn(&mut RestoreAnswer); 3] = [
        |answer| answer.offset += 1,
        |answer| answer.data = answer.data.slice(..answer.data.len() / 2),
        |answer| answer.data = [&answer.data[..], &[1]].concat().into(),
    ];
    for spoil in spoils {
        let mut target = Memory::new(vec![255; disk.len()]);
        let mut truth = Truth::new(&disk);
        truth.spoil = spoil;
        let error = run(fetch(&mut truth, &mut target, &opened(&disk), &silent)).unwrap_err();
        assert!(matches!(error, RestoreError::Answer(_)), "{error}");
    }
}
