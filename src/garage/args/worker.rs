//! `garage worker …`, `garage repair …` and `garage block …`

use clap::{ArgGroup, Args, Subcommand};

#[derive(Debug, Subcommand)]
pub enum WorkerCommand {
    /// List the background jobs of the node
    List {
        /// Only those at work
        #[arg(short, long)]
        busy: bool,
        /// Only those that had errors
        #[arg(short, long)]
        errors: bool,
        /// Of every node
        #[arg(short, long)]
        all_nodes: bool,
    },
    /// Show one job
    Info {
        /// Its number in the list
        #[arg(value_name = "TID")]
        id: u64,
        /// The job of that number on every node
        #[arg(short, long)]
        all_nodes: bool,
    },
    /// Show settings of jobs
    Get {
        /// One of them [default: all]
        variable: Option<String>,
        /// Of every node
        #[arg(short, long)]
        all_nodes: bool,
    },
    /// Change a setting; it outlives a restart
    Set {
        variable: String,
        value: String,
        /// On every node
        #[arg(short, long)]
        all_nodes: bool,
    },
}

#[derive(Debug, Clone, Args)]
pub struct RepairArgs {
    /// On every node
    #[arg(short, long, global = true)]
    pub all_nodes: bool,
    /// Confirms
    #[arg(long, global = true)]
    pub yes: bool,
    #[command(subcommand)]
    pub what: RepairWhat,
}

#[derive(Debug, Clone, Subcommand)]
pub enum RepairWhat {
    /// Compare all metadata with other nodes
    Tables,
    /// Fetch blocks that are missing, remove those that nothing needs
    Blocks,
    /// Remove versions that no object and no upload has
    Versions,
    /// Remove parts whose multipart upload has ended
    #[command(alias = "multipart-uploads")]
    Mpu,
    /// Remove block references of versions that are deleted
    #[command(alias = "block_refs")]
    BlockRefs,
    /// Count the references to blocks anew
    #[command(alias = "block_rc")]
    BlockRc,
    /// Give up the blocks of a database that was lost, where no other node has its rows, and remove them
    LostBlocks,
    /// Give up the objects whose rows in the metadata are damaged, where there are no other copies; what is left of the rows is set aside
    DamagedRows,
    /// Move blocks to their primary data directory
    Rebalance,
    /// Set right names of buckets that contradict each other
    Aliases,
    /// Rows that the node took out of its tables although nobody deleted them: a decision is needed
    SetAside {
        #[command(subcommand)]
        command: SetAsideWhat,
    },
    /// Read and check every block file
    Scrub {
        #[command(subcommand)]
        command: ScrubWhat,
    },
}

#[derive(Debug, Clone, Subcommand)]
pub enum SetAsideWhat {
    /// List them: of which table and key, when and why
    List,
    /// Show all that one says
    Show {
        /// Its id in the list, or the beginning of it
        id: String,
    },
    /// Offer them to their owners again, as new writes; what is superseded is let go
    Merge(WhichRows),
    /// Let them go for good
    Discard(WhichRows),
}

#[derive(Debug, Clone, Args)]
#[group(required = true, multiple = false)]
pub struct WhichRows {
    /// Their ids in the list, or the beginnings of them
    #[arg(value_name = "ID")]
    pub ids: Vec<String>,
    /// All of the node's
    #[arg(long)]
    pub all: bool,
}

#[derive(Debug, Clone, Copy, Subcommand)]
pub enum ScrubWhat {
    /// Begin now
    Start,
    /// Stop for at most 24 hours
    Pause,
    /// Go on
    Resume,
    /// Give up the scrub in progress
    Cancel,
    /// How many times the time of its work the scrub rests
    #[command(hide = true)]
    SetTranquility { tranquility: u32 },
}

#[derive(Debug, Subcommand)]
pub enum BlockCommand {
    /// List blocks that could not be fetched, given or removed
    ListErrors,
    /// Show who refers to a block
    Info {
        /// Its name, or at least the first 4 digits
        hash: String,
    },
    /// Try blocks again now that failed
    #[command(group = ArgGroup::new("which").args(["hashes", "all"]).required(true))]
    RetryNow {
        /// Their names
        #[arg(value_name = "HASH")]
        hashes: Vec<String>,
        /// All that failed
        #[arg(long)]
        all: bool,
    },
    /// Give up blocks that are lost for good: delete every object that contains one of them
    Purge {
        /// Confirms
        #[arg(long)]
        yes: bool,
        /// Their names
        #[arg(required = true, value_name = "HASH")]
        hashes: Vec<String>,
    },
}
