// Sluice's dedupe and vardiff on Goka: a table keyed by session, a verdict for each share, decisions beside them. It works off
// its input, says so, and ends. How it is tuned, and why, stands in config.go.
//
// Arguments: brokers, group, input topic, topic of verdicts, topic of decisions, directory of the state.
package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"log"
	"os"
	"strings"
	"sync/atomic"

	"github.com/IBM/sarama"
	"github.com/lovoo/goka"
)

func main() {
	if len(os.Args) != 7 {
		log.Fatalf("usage: %s BROKERS GROUP INPUT VERDICTS DECISIONS STATE", os.Args[0])
	}
	brokers := strings.Split(os.Args[1], ",")
	group, input := os.Args[2], os.Args[3]
	verdicts, decisions, state := goka.Stream(os.Args[4]), goka.Stream(os.Args[5]), os.Args[6]
	configure()
	ctx, stop := context.WithCancel(context.Background())
	left, err := whatIsLeft(brokers, group, input, stop)
	if err != nil {
		log.Fatal(err)
	}
	graph := goka.DefineGroup(goka.Group(group),
		goka.Input(goka.Stream(input), raw{}, func(ctx goka.Context, message any) {
			left.begin()
			judge(ctx, message.([]byte), verdicts, decisions)
			left.count(ctx.Partition(), ctx.Offset())
		}),
		goka.Output(verdicts, raw{}),
		goka.Output(decisions, raw{}),
		goka.Persist(raw{}))
	processor, err := goka.NewProcessor(brokers, graph, options(state)...)
	if err != nil {
		log.Fatal(err)
	}
	// Ends once everything that was emitted is acknowledged and the offsets are committed.
	if err := processor.Run(ctx); err != nil {
		log.Fatal(err)
	}
	fmt.Println("done")
}

// judge is what dedupe and vardiff do with a share.
func judge(ctx goka.Context, record []byte, verdicts, decisions goka.Stream) {
	share, err := parse(record)
	if err != nil {
		ctx.Fail(err)
	}
	var row []byte
	if stored := ctx.Value(); stored != nil {
		row = stored.([]byte)
	}
	session := read(row, &share)
	fresh := session.accept(&share)
	if fresh {
		session.add(share.time, share.difficulty)
	} else {
		record = share.asDuplicate(record)
	}
	difficulty, decided := session.decide(share.time)
	ctx.SetValue(session.write())
	ctx.Emit(verdicts, ctx.Key(), record)
	if decided {
		decision := make([]byte, 0, 24)
		for _, word := range []uint64{share.session, share.time, difficulty} {
			decision = binary.BigEndian.AppendUint64(decision, word)
		}
		ctx.Emit(decisions, ctx.Key(), decision)
	}
}

// raw passes bytes on: whoever has them reads them in place, which is cheaper than a decoder and what it allocates.
type raw struct{}

func (raw) Encode(value any) ([]byte, error) {
	return value.([]byte), nil
}

func (raw) Decode(data []byte) (any, error) {
	return data, nil
}

// remaining knows how far each partition is from the end it had at the start.
type remaining struct {
	ends       []int64
	partitions atomic.Int32
	begun      atomic.Bool
	stop       context.CancelFunc
}

// whatIsLeft asks how much of the input the group has not committed.
func whatIsLeft(brokers []string, group, input string, stop context.CancelFunc) (*remaining, error) {
	client, err := sarama.NewClient(brokers, config())
	if err != nil {
		return nil, err
	}
	defer client.Close()
	partitions, err := client.Partitions(input)
	if err != nil {
		return nil, err
	}
	admin, err := sarama.NewClusterAdminFromClient(client)
	if err != nil {
		return nil, err
	}
	committed, err := admin.ListConsumerGroupOffsets(group, map[string][]int32{input: partitions})
	if err != nil {
		return nil, err
	}
	left := &remaining{ends: make([]int64, len(partitions)), stop: stop}
	for _, partition := range partitions {
		end, err := client.GetOffset(input, partition, sarama.OffsetNewest)
		if err != nil {
			return nil, err
		}
		left.ends[partition] = end
		if block := committed.GetBlock(input, partition); block == nil || block.Offset < end {
			left.partitions.Add(1)
		}
	}
	return left, nil
}

func (r *remaining) begin() {
	if !r.begun.Load() && r.begun.CompareAndSwap(false, true) {
		fmt.Println("begun")
	}
}

func (r *remaining) count(partition int32, offset int64) {
	if offset == r.ends[partition]-1 && r.partitions.Add(-1) == 0 {
		r.stop()
	}
}
