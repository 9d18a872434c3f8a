//! How RocksDB is set up: for records whose keys only grow, written once, read mostly at the end.

use rocksdb::{
    BlockBasedOptions, Cache, DBCompactionStyle, DBCompressionType, DBRecoveryMode, LogLevel, Options,
    WriteBufferManager,
};

use sluice_proto::hash32;

use super::EmbeddedOptions;

const MIB: usize = 1 << 20;

/// Settings of the whole database.
pub(super) fn database(options: &EmbeddedOptions) -> Options {
    let mut db = Options::default();
    // One manager bounds the memtables of all partitions. It does not stall: at the limit the fullest are flushed.
    db.set_write_buffer_manager(&WriteBufferManager::new_write_buffer_manager(options.write_buffer_bytes, false));
    // A busy and an idle partition share the write-ahead log: at this size the idle ones are flushed too, so that their
    // old records do not hold its files for ever. It bounds the time that opening takes.
    db.set_max_total_wal_size(options.wal_bytes);
    // Recycled files have their blocks already, so that a sync does not wait for the file system's journal. It needs
    // recovery to stop at the first broken record, which it takes for the end; whether it was, the durable mark tells.
    db.set_recycle_log_file_num(4);
    db.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
    db.set_track_and_verify_wals_in_manifest(true);
    // One writer: no need to coordinate several.
    db.set_allow_concurrent_memtable_write(false);
    db.set_enable_write_thread_adaptive_yield(false);
    db.set_max_background_jobs(4);
    // Written out in small steps, so that a flush of a memtable does not make the syncs of the log wait behind it.
    db.set_bytes_per_sync(MIB as u64);
    db.set_max_open_files(512);
    db.set_keep_log_file_num(4);
    db.set_max_log_file_size(8 * MIB);
    db.set_log_level(LogLevel::Warn);
    db.set_stats_dump_period_sec(0);
    db.set_stats_persist_period_sec(0);
    db.set_max_manifest_file_size(16 * MIB);
    db
}

/// Settings of a partition.
///
/// Compaction by levels: the files of a partition never overlap, so RocksDB moves them down by a change of its
/// manifest, without reading or writing them, and a reader opens the one file that holds its offset. FIFO compaction
/// would leave them all in level 0, where a reader opens every one and `delete_file_in_range` removes none.
pub(super) fn partition(options: &EmbeddedOptions, cache: &Cache) -> Options {
    let mut cf = Options::default();
    cf.set_compaction_style(DBCompactionStyle::Level);
    cf.set_level_compaction_dynamic_level_bytes(true);
    // Never more than two levels: 0 and the last.
    cf.set_max_bytes_for_level_base(1 << 50);
    cf.set_soft_pending_compaction_bytes_limit(0);
    cf.set_hard_pending_compaction_bytes_limit(0);
    cf.set_level_zero_file_num_compaction_trigger(2);
    cf.set_level_zero_slowdown_writes_trigger(200);
    cf.set_level_zero_stop_writes_trigger(400);
    cf.set_target_file_size_base(64 * MIB as u64);
    cf.set_arena_block_size(256 << 10);
    cf.set_max_write_buffer_number(6);
    // The same at every level: files could not be moved otherwise.
    let compression = if options.compress { DBCompressionType::Lz4 } else { DBCompressionType::None };
    cf.set_compression_type(compression);
    cf.set_bottommost_compression_type(compression);
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(cache);
    table.set_block_size(32 << 10);
    table.set_cache_index_and_filter_blocks(true);
    cf.set_block_based_table_factory(&table);
    cf
}

/// `partition` with the memtable size of the column family `name`, where all together have `write_buffer_bytes`.
///
/// Partitions of a topic fill alike. With memtables of one size they would all be full at once, and writing them all out
/// would make the syncs of the log wait for as long as the disk takes for the sum of them. So each has another size,
/// spread evenly between half and all of the largest.
pub(super) fn family(partition: &Options, name: &str, write_buffer_bytes: usize) -> Options {
    let mut cf = partition.clone();
    cf.set_write_buffer_size(memtable_bytes(name, write_buffer_bytes));
    cf
}

fn memtable_bytes(name: &str, all: usize) -> usize {
    let largest = (all / 4).clamp(MIB, 32 * MIB);
    let (topic, number) = name.rsplit_once('/').unwrap_or((name, "0"));
    // Multiples of the golden ratio are spread evenly over a circle, however many there are.
    let number = number.parse::<u32>().unwrap_or(0).wrapping_mul(0x9e37_79b9);
    let place = hash32(topic).wrapping_add(number) as usize;
    largest / 2 + ((largest / 2 * (place >> 16)) >> 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memtables_of_a_topic_are_never_full_at_once() {
        for partitions in [2, 8, 32] {
            let sizes = (0..partitions).map(|number| memtable_bytes(&format!("share.submissions/{number}"), 256 * MIB));
            let mut sizes: Vec<_> = sizes.collect();
            sizes.sort_unstable();
            assert!(sizes[0] >= 16 * MIB && sizes[sizes.len() - 1] <= 32 * MIB, "{sizes:?}");
            let apart = sizes.windows(2).map(|pair| pair[1] - pair[0]).min().unwrap();
            // Evenly spread they would be 16 MiB / partitions apart.
            assert!(apart >= 16 * MIB / partitions / 3, "{sizes:?}");
        }
        assert!(memtable_bytes("jobs/0", 0) >= MIB / 2, "however small the limit");
    }
}
