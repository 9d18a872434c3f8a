package main

import (
	"fmt"
	"hash"
	"log"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	"github.com/IBM/sarama"
	"github.com/lovoo/goka"
	"github.com/lovoo/goka/storage"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/filter"
	"github.com/syndtr/goleveldb/leveldb/opt"
)

const (
	// Messages that may wait in each of Goka's and Sarama's channels. Goka's default of 10 has goroutines wait for each other.
	channelSize = 4096
	// Bytes and time after which Sarama sends what it has; Goka's defaults are 64 KiB and 100 ms.
	flushBytes     = 900 << 10
	flushFrequency = 20 * time.Millisecond
	fetchBytes     = 4 << 20
	// The collector lets the heap grow to three times of what is in use; Go's default is twice. More took memory and no less CPU.
	collectAt = 200
	// LevelDB's default is 4 MiB. Beyond this its skip list, which keeps every version of a row, costs what is saved in writing.
	writeBuffer = 16 << 20
)

// config is what producer, consumer and group share.
func config() *sarama.Config {
	config := goka.DefaultConfig()
	config.Version = sarama.V3_6_0_0
	config.ChannelBufferSize = channelSize
	config.Consumer.Fetch.Default = fetchBytes
	config.Consumer.Offsets.Initial = sarama.OffsetOldest
	// Brokers take nothing below 6 s; Sarama's default is 10. A restart after a kill waits for it.
	config.Consumer.Group.Session.Timeout = 6 * time.Second
	config.Consumer.Group.Heartbeat.Interval = 2 * time.Second
	config.Producer.RequiredAcks = sarama.WaitForAll
	// As Sluice's producer: without it, a retry may double and reorder. Sarama then has one request to a broker under way.
	config.Producer.Idempotent = true
	config.Net.MaxOpenRequests = 1
	config.Producer.Compression = sarama.CompressionNone
	config.Producer.Flush.Bytes = flushBytes
	config.Producer.Flush.Frequency = flushFrequency
	config.Producer.MaxMessageBytes = 1_000_000
	return config
}

// configure sets what is one for the process.
func configure() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(collectAt)
	}
	log.SetOutput(os.Stderr)
	goka.ReplaceGlobalConfig(config())
}

// options are those of the processor with its state in this directory.
func options(state string) []goka.ProcessorOption {
	return []goka.ProcessorOption{
		goka.WithStorageBuilder(builder(state)),
		goka.WithPartitionChannelSize(channelSize),
		goka.WithHasher(func() hash.Hash32 { return new(murmur2) }),
		goka.WithLogger(log.New(quiet{}, "", 0)),
	}
}

// quiet drops what Goka tells of its progress. Errors come back from Run.
type quiet struct{}

func (quiet) Write(line []byte) (int, error) {
	return len(line), nil
}

// builder opens a LevelDB for each partition, with room for the rows of all its sessions.
func builder(state string) storage.Builder {
	return func(topic string, partition int32) (storage.Storage, error) {
		path := filepath.Join(state, fmt.Sprintf("%s.%d", topic, partition))
		db, err := leveldb.OpenFile(path, &opt.Options{
			BlockCacheCapacity:  64 << 20,
			CompactionTableSize: 16 << 20,
			Compression:         opt.NoCompression,
			Filter:              filter.NewBloomFilter(10),
			NoSync:              true,
			WriteBuffer:         writeBuffer,
		})
		if err != nil {
			return nil, fmt.Errorf("opening %s: %w", path, err)
		}
		return storage.New(db)
	}
}

// murmur2 is Kafka's hash of a key, made positive: so a session's table row lies in the partition of its shares.
type murmur2 struct {
	key []byte
}

func (m *murmur2) Write(part []byte) (int, error) {
	m.key = append(m.key, part...)
	return len(part), nil
}

func (m *murmur2) Sum(to []byte) []byte {
	sum := m.Sum32()
	return append(to, byte(sum>>24), byte(sum>>16), byte(sum>>8), byte(sum))
}

func (m *murmur2) Reset()         { m.key = m.key[:0] }
func (m *murmur2) Size() int      { return 4 }
func (m *murmur2) BlockSize() int { return 4 }

func (m *murmur2) Sum32() uint32 {
	const mix = 0x5bd1e995
	key := m.key
	sum := 0x9747b28c ^ uint32(len(key))
	for ; len(key) >= 4; key = key[4:] {
		word := uint32(key[0]) | uint32(key[1])<<8 | uint32(key[2])<<16 | uint32(key[3])<<24
		word *= mix
		word ^= word >> 24
		sum = sum*mix ^ word*mix
	}
	for place, last := range key {
		sum ^= uint32(last) << (8 * place)
	}
	if len(key) > 0 {
		sum *= mix
	}
	sum ^= sum >> 13
	sum *= mix
	sum ^= sum >> 15
	return sum & 0x7fffffff
}
