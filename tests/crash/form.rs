//! The form of the tests, and the rows of the table that they print.

/// Whether the figures are to be reached (`PLYFS_CRASH=long`), which takes long.
pub(crate) fn long() -> bool {
    std::env::var_os("PLYFS_CRASH").is_some_and(|form| form == "long")
}

/// What a row has come to.
#[derive(Debug, Default)]
pub(crate) struct Row {
    /// How often the fault came about.
    pub(crate) reached: usize,
    /// What must not be, each in words.
    pub(crate) violations: Vec<String>,
    /// What else was counted.
    pub(crate) notes: Vec<String>,
}

impl Row {
    /// Prints the row; it fails the test if there is a violation or fewer points were reached than wanted.
    #[track_caller]
    pub(crate) fn end(self, what: &str, target: &str, least: usize) {
        let Row { reached, violations, notes } = self;
        let notes = if notes.is_empty() { String::new() } else { format!(" ({})", notes.join(", ")) };
        println!("| {what} | {target} | {reached}{notes} | {} |", violations.len());
        assert!(violations.is_empty(), "{} violations, the first: {}", violations.len(), violations[0]);
        assert!(reached >= least, "{reached} points, fewer than {least}");
    }

    /// Notes down what must not be.
    pub(crate) fn violation(&mut self, what: String) {
        eprintln!("violation: {what}");
        self.violations.push(what);
    }

    pub(crate) fn add(&mut self, other: Row) {
        self.reached += other.reached;
        self.violations.extend(other.violations);
    }
}

/// Does `work` for each item on two threads, in an order that does not matter.
pub(crate) fn in_two<T: Sync>(items: &[T], work: impl Fn(usize, &T) -> Row + Sync) -> Row {
    let next = std::sync::atomic::AtomicUsize::new(0);
    let rows: Vec<Row> = std::thread::scope(|scope| {
        let worker = || {
            let mut row = Row::default();
            loop {
                let number = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                let Some(item) = items.get(number) else { return row };
                row.add(work(number, item));
            }
        };
        let workers = [scope.spawn(worker), scope.spawn(worker)];
        workers.map(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).into()
    });
    let mut sum = Row::default();
    rows.into_iter().for_each(|row| sum.add(row));
    sum
}
