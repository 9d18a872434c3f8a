//! The list of all failpoints.

/// Makes [`Point`] from the list: variant, name, whether an error may be injected there, what has happened there.
macro_rules! points {
    ($($variant:ident $name:literal $can_fail:literal $place:literal,)*) => {
        /// A place in the program. Each is passed once per group, batch, block or job, never per share.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Point {
            $(#[doc = $place] $variant,)*
        }

        impl Point {
            /// All of them, in the order of a share's life, then of a block's.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// Its name in `SLUICE_FAILPOINTS`.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// What has happened where it stands, and what has not.
            pub const fn place(self) -> &'static str {
                match self { $(Self::$variant => $place,)* }
            }

            /// An error can be injected: there is a way for it to go.
            pub const fn can_fail(self) -> bool {
                match self { $(Self::$variant => $can_fail,)* }
            }
        }
    };
}

points! {
    AppendBefore "append::before" true "The embedded log has taken a group, and has written nothing of it.",
    AppendAfter "append::after" true "The group is written and synced; its mark, its readers and its callers do not know.",
    AnswersBefore "answers::before" false "Readers see the group; those who appended it have not been told.",
    GatewayBefore "gateway::before" false "A gateway's shares are durable, and no miner has an answer.",
    GatewayAfter "gateway::after" false "The miners have their answers.",
    FenceBefore "fence::before" false "A task or service has claimed its epoch, and no partition has its fence.",
    FenceAfter "fence::after" false "All of its partitions have the fence, and nothing else of the epoch.",
    OutputsBefore "outputs::before" true "A task has made the outputs of a batch, and has appended none.",
    OutputsAfter "outputs::after" true "They are durable; effects and state know nothing of the batch.",
    FlushBefore "flush::before" true "Before operators make their effects outside the state durable.",
    FlushAfter "flush::after" true "The effects are durable, the state knows nothing of the batch.",
    LedgerBefore "ledger::before" true "All of the ledger's transaction is done but its commit.",
    LedgerAfter "ledger::after" true "The ledger's transaction is committed, and its task has not been told.",
    CommitBefore "commit::before" true "A batch is in the state's memory, and not committed.",
    CommitAfter "commit::after" true "It is committed, and nothing was told of it.",
    CheckpointBefore "checkpoint::before" false "The files of a checkpoint are there, and it has no name by which it is found.",
    CheckpointAfter "checkpoint::after" false "A checkpoint is complete; older ones are still there.",
    SyncBefore "sync::before" true "A task that stops has committed everything, and has not synced its state.",
    SyncAfter "sync::after" true "Its state is synced.",
    JobBefore "job::before" false "The transactions of a template are in the log, the job is not.",
    JobAfter "job::after" false "The job is in the log; whoever makes jobs has not noted it.",
    SubmitBefore "submit::before" false "A block is durable, and no node has been sent it.",
    SubmitAfter "submit::after" false "The nodes have said what they think of a block; nothing of it is written.",
}
