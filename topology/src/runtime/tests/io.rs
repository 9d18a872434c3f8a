//! Producer and reader on a log, and what they refuse (P1).

use sluice_log::LogError;
use sluice_proto::v1::{Coordinates, Fence};
use sluice_proto::{SCHEMA, encode};

use super::*;

async fn append_raw(log: &Arc<MemoryLog>, topic: &str, envelope: &Envelope) -> Offset {
    log.append(&Partition::new(topic, 0), vec![encode(envelope)]).await.unwrap()
}

fn reader(log: &Arc<MemoryLog>, topic: &str, from: Offset) -> TopicReader {
    TopicReader::new(log.clone(), Partition::new(topic, 0), from)
}

fn nonces(batch: &[(Offset, Envelope)]) -> Vec<u32> {
    let nonce = |(_, envelope): &(Offset, Envelope)| match &envelope.body {
        Some(Body::Submission(share)) => share.nonce,
        other => panic!("{other:?}"),
    };
    batch.iter().map(nonce).collect()
}

#[tokio::test]
async fn what_a_producer_writes_is_read_in_the_order_of_the_calls() {
    let log = new_log().await;
    let producer = producer(&log, "share.submissions", 1);
    let calls: Vec<_> = (0..20u32)
        .map(|call| producer.append(0, (0..3).map(|i| (at(1), share(1, 1, call * 3 + i, 0))).collect()))
        .collect();
    // The futures are awaited in another order than they were called in.
    for append in calls.into_iter().rev() {
        append.await.unwrap();
    }
    let batch = reader(&log, "share.submissions", Offset::ZERO).next_batch(SECOND).await.unwrap();
    assert_eq!(nonces(&batch), (0..60).collect::<Vec<_>>());
    assert!(matches!(producer.append(9, vec![]).await, Err(LogError::Unknown(partition)) if partition.number == 9));
}

#[tokio::test]
async fn a_source_that_starts_again_goes_on_in_its_next_epoch() {
    let log = new_log().await;
    for epoch in 1..4 {
        let records = (0..2).map(|i| (at(1), share(1, 1, epoch * 2 + i, 0))).collect();
        producer(&log, "share.submissions", epoch).append(0, records).await.unwrap();
    }
    let mut reader = reader(&log, "share.submissions", Offset::ZERO);
    assert_eq!(nonces(&reader.next_batch(SECOND).await.unwrap()), (2..8).collect::<Vec<_>>());
    assert_eq!(reader.dropped(), 0);
}

#[tokio::test]
async fn s1_a_record_written_twice_is_read_once() {
    let log = new_log().await;
    let records = || (0..5).map(|nonce| (at(1), share(1, 1, nonce, 0))).collect();
    producer(&log, "share.submissions", 1).append(0, records()).await.unwrap();
    producer(&log, "share.submissions", 1).append(0, records()).await.unwrap();
    let mut reader = reader(&log, "share.submissions", Offset::ZERO);
    assert_eq!(nonces(&reader.next_batch(SECOND).await.unwrap()), (0..5).collect::<Vec<_>>());
    assert_eq!(reader.dropped(), 5);
}

#[tokio::test]
async fn p1_a_gap_stops_the_reader_with_its_place() {
    let log = new_log().await;
    producer(&log, "share.submissions", 1).append(0, vec![(at(1), share(1, 1, 1, 0))]).await.unwrap();
    let from = Coordinates { source_offset: 3, prev_offset: 2, ..Coordinates::default() };
    let from = Coordinates { task: sluice_proto::hash64("stratumd"), epoch: 1, ..from };
    let offset = append_raw(&log, "share.submissions", &Envelope::new(at(1), from, share(1, 1, 3, 0))).await;
    let mut reader = reader(&log, "share.submissions", Offset::ZERO);
    for _ in 0..2 {
        let error = reader.next_batch(SECOND).await.unwrap_err();
        assert!(matches!(error, ReadError::Lane { .. }));
        let text = error.to_string();
        assert!(text.contains(&format!("share.submissions/0 offset {offset}")), "{text}");
    }
}

#[tokio::test]
async fn p1_what_is_no_record_of_this_schema_stops_the_reader() {
    let log = new_log().await;
    let from = Coordinates { source_offset: 1, epoch: 1, ..Coordinates::default() };
    let newer = Envelope { schema: SCHEMA + 1, ..Envelope::new(at(1), from, tick()) };
    append_raw(&log, "share.submissions", &newer).await;
    let error = reader(&log, "share.submissions", Offset::ZERO).next_batch(SECOND).await.unwrap_err();
    assert!(matches!(error, ReadError::Decode { offset, .. } if offset == Offset::new(1)), "{error}");

    append_raw(&log, "share.urgent", &Envelope { from: None, ..Envelope::new(at(1), from, tick()) }).await;
    let error = reader(&log, "share.urgent", Offset::ZERO).next_batch(SECOND).await.unwrap_err();
    assert!(matches!(error, ReadError::NoCoordinates { .. }), "{error}");

    let genesis = log.read(&Partition::new("share.low", 0), Offset::ZERO, 1, SECOND).await.unwrap();
    log.append(&Partition::new("share.checked", 0), vec![genesis[0].value.clone()]).await.unwrap();
    let error = reader(&log, "share.checked", Offset::ZERO).next_batch(SECOND).await.unwrap_err();
    assert!(matches!(error, ReadError::Genesis { .. }), "{error}");
}

#[tokio::test]
async fn p1_a_position_beyond_the_log_is_an_error() {
    let log = new_log().await;
    let error = reader(&log, "share.submissions", Offset::new(50)).next_batch(SECOND).await.unwrap_err();
    assert!(matches!(error, ReadError::Log { error: LogError::OutOfRange { .. }, .. }), "{error}");
}

#[tokio::test]
async fn a_reader_from_the_oldest_record_takes_a_trimmed_topic_as_it_is() {
    let log = new_log().await;
    let producer = producer(&log, "share.submissions", 1);
    for nonce in 0..10 {
        producer.append(0, vec![(at(1), share(1, 1, nonce, 0))]).await.unwrap();
    }
    let partition = Partition::new("share.submissions", 0);
    let mut whole = TopicReader::from_oldest(log.clone(), partition.clone()).await.unwrap();
    assert_eq!(nonces(&whole.next_batch(SECOND).await.unwrap()), (0..10).collect::<Vec<_>>());
    log.trim(&partition, Offset::new(6)).await.unwrap();
    let start = log.bounds(&partition).await.unwrap().start;
    let mut rest = TopicReader::from_oldest(log.clone(), partition).await.unwrap();
    let batch = rest.next_batch(SECOND).await.unwrap();
    assert_eq!(batch.first().unwrap().0, start);
    assert_eq!(*nonces(&batch).last().unwrap(), 9);
}

#[tokio::test]
async fn records_of_an_owner_that_was_replaced_are_void() {
    let log = new_log().await;
    let task = sluice_proto::hash64("stratumd");
    let old = producer(&log, "share.submissions", 1);
    old.append(0, vec![(at(1), share(1, 1, 1, 0))]).await.unwrap();
    let fence = Envelope::new(at(1), Coordinates::default(), Body::Fence(Fence { task, epoch: 2, ..Fence::default() }));
    append_raw(&log, "share.submissions", &fence).await;
    old.append(0, vec![(at(1), share(1, 1, 2, 0))]).await.unwrap();
    producer(&log, "share.submissions", 2).append(0, vec![(at(1), share(1, 1, 3, 0))]).await.unwrap();
    let mut reader = reader(&log, "share.submissions", Offset::ZERO);
    assert_eq!(nonces(&reader.next_batch(SECOND).await.unwrap()), [1, 3]);
    assert_eq!(reader.dropped(), 1);
}
