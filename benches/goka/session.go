package main

import (
	"encoding/binary"
	"math/bits"
)

// The rules of operators/src/vardiff/row.rs and docs/VARDIFF.md, with the settings' defaults. Numbers have 64 bits where Sluice has
// 128: the difficulties of this bench need no more.
const (
	slotLength = 30_000_000_000
	slots      = 16
	first      = 12
	settled    = 100
	hasty      = 5_000_000_000
	perMinute  = 20
	one        = 1 << 24
	// 1e-7 and 1e12, rounded down to what is given out.
	minimum = 1
	maximum = 1_000_000_000_000 * one
	head    = 6*8 + 4 + 2
)

var windows = [...]int{1, 2, 3, 4, 6, 9, slots - 1}

// session is a row of the table: the windows of vardiff, and the headers of the jobs that can still be cited.
type session struct {
	decided, measured, issued, since, slot uint64
	basedOn                                uint64
	proven                                 bool
	// Newest first.
	sums, counts [slots]uint64
	// A job and a hash, oldest first.
	headers []header
}

type header struct {
	job, hash uint64
}

// window is some of the newest slots together.
type window struct {
	whole               int
	elapsed, sum, count uint64
}

// read makes a session of its row, or a new one of its first share.
func read(row []byte, first *share) session {
	if row == nil {
		d := max(first.difficulty, 1)
		return session{decided: d, measured: d, issued: d, since: first.time, slot: first.time}
	}
	word := func(at int) uint64 { return binary.LittleEndian.Uint64(row[at:]) }
	s := session{decided: word(0), measured: word(8), issued: word(16), since: word(24), slot: word(32), basedOn: word(40)}
	s.proven = row[48] != 0
	used := int(row[49])
	rest := row[head:]
	for at := range used {
		s.sums[at] = binary.LittleEndian.Uint64(rest)
		s.counts[at] = uint64(binary.LittleEndian.Uint32(rest[8:]))
		rest = rest[12:]
	}
	// One more may come.
	s.headers = make([]header, 0, len(rest)/12+1)
	for ; len(rest) >= 12; rest = rest[12:] {
		job := uint64(binary.LittleEndian.Uint32(rest))
		s.headers = append(s.headers, header{job, binary.LittleEndian.Uint64(rest[4:])})
	}
	return s
}

// write makes the row. A job's number takes 4 bytes and a hash 8: the smaller the row, the less LevelDB and the table's topic get.
func (s *session) write() []byte {
	used := slots
	for used > 0 && s.counts[used-1] == 0 {
		used--
	}
	row := make([]byte, head, head+12*(used+len(s.headers)))
	for at, word := range [...]uint64{s.decided, s.measured, s.issued, s.since, s.slot, s.basedOn} {
		binary.LittleEndian.PutUint64(row[8*at:], word)
	}
	if s.proven {
		row[48] = 1
	}
	row[49] = byte(used)
	for at := range used {
		row = binary.LittleEndian.AppendUint64(row, s.sums[at])
		row = binary.LittleEndian.AppendUint32(row, uint32(s.counts[at]))
	}
	for _, header := range s.headers {
		row = binary.LittleEndian.AppendUint32(row, uint32(header.job))
		row = binary.LittleEndian.AppendUint64(row, header.hash)
	}
	return row
}

// accept takes in a header, and forgets those of jobs that can no longer be cited; false if it was there.
func (s *session) accept(share *share) bool {
	for len(s.headers) > 0 && s.headers[0].job < share.liveFrom {
		s.headers = s.headers[1:]
	}
	for _, header := range s.headers {
		if header.hash == share.hash && header.job == share.job {
			return false
		}
	}
	s.headers = append(s.headers, header{share.job, share.hash})
	return true
}

func (s *session) begin(time uint64) {
	s.since, s.slot = time, time
	s.sums, s.counts = [slots]uint64{}, [slots]uint64{}
}

func (s *session) roll(time uint64) {
	passed := since(time, s.slot) / slotLength
	if passed == 0 {
		return
	}
	shift := int(min(passed, slots))
	copy(s.sums[shift:], s.sums[:])
	copy(s.counts[shift:], s.counts[:])
	clear(s.sums[:shift])
	clear(s.counts[:shift])
	s.slot += passed * slotLength
}

// add counts an accepted share.
func (s *session) add(time, difficulty uint64) {
	s.roll(time)
	harder := difficulty/16 >= s.issued
	s.issued = max(difficulty, 1)
	if !s.proven || harder {
		s.proven = true
		s.begin(time)
		return
	}
	s.sums[0] += difficulty
	s.counts[0]++
}

// decide says whether the session is to get another difficulty, and which.
func (s *session) decide(time uint64) (uint64, bool) {
	s.roll(time)
	if !s.proven {
		if expectedMilli(since(time, s.since)) < 2_000 {
			return 0, false
		}
		s.begin(time)
		return s.moveTo(s.measured / 16)
	}
	chosen := s.window(slots-1, time)
	if s.basedOn >= settled || chosen.count < max(first, s.basedOn+s.basedOn/4) {
		var off bool
		if chosen, off = s.mostOff(time); !off {
			return 0, false
		}
	}
	estimate := s.estimate(&chosen)
	s.basedOn = chosen.count
	if chosen.count == 0 {
		s.begin(time)
	} else {
		s.since = time - chosen.elapsed
		clear(s.sums[chosen.whole+1:])
		clear(s.counts[chosen.whole+1:])
	}
	return s.moveTo(max(estimate, s.issued/256))
}

func (s *session) window(whole int, time uint64) window {
	made := window{whole: whole, elapsed: min(uint64(whole)*slotLength, since(s.slot, s.since)) + since(time, s.slot)}
	for at := 0; at <= whole; at++ {
		made.sum += s.sums[at]
		made.count += s.counts[at]
	}
	return made
}

// mostOff is the window that chance explains least, if there is one that it does not explain.
func (s *session) mostOff(time uint64) (window, bool) {
	var most window
	var square uint64
	least := min(slotLength, since(time, s.since))
	grown, next := window{}, 0
	for _, whole := range windows {
		// Each is the one before and the slots between.
		for ; next <= whole; next++ {
			grown.sum += s.sums[next]
			grown.count += s.counts[next]
		}
		grown.whole = whole
		grown.elapsed = min(uint64(whole)*slotLength, since(s.slot, s.since)) + since(time, s.slot)
		if grown.elapsed < least {
			continue
		}
		if off := s.off(&grown); off > square {
			most, square = grown, off
		}
	}
	return most, square > 0
}

// off is the square of the standard deviations between shares and what they should be, in thousandths; 0 if chance explains them.
func (s *session) off(w *window) uint64 {
	each := s.decided
	if w.count > 0 {
		each = max(w.sum/w.count, 1)
	}
	due := expectedMilli(w.elapsed) * s.measured
	// Off by no more than a quarter: most windows end here, before the divisions.
	if due >= 800*w.count*each && due < (4_000*w.count/3+1)*each {
		return 0
	}
	came, expected := w.count*1_000, due/each
	difference, enough, chance := expected-came, expected >= 7_000, uint64(7_000)
	if came > expected {
		difference, enough, chance = came-expected, came >= first*1_000, 16_000
	}
	if !enough || difference*4 <= expected {
		return 0
	}
	if square := difference * difference / max(expected, 1); square > chance {
		return square
	}
	return 0
}

func (s *session) estimate(w *window) uint64 {
	sum := max(w.sum, s.decided)
	if s.basedOn < settled {
		sum -= sum / (2 * max(w.count, 1))
	}
	high, low := bits.Mul64(sum, 1_000)
	measured, _ := bits.Div64(high, low, max(expectedMilli(w.elapsed), 1))
	if w.elapsed < hasty {
		measured = min(measured, s.issued*16)
	}
	return measured
}

func (s *session) moveTo(measured uint64) (uint64, bool) {
	s.measured = max(measured, 1)
	allowed := min(max(roundToAllowed(s.measured), minimum), maximum)
	if max(allowed, s.decided)-min(allowed, s.decided) <= s.decided/16 {
		return 0, false
	}
	s.decided = allowed
	return allowed, true
}

// roundToAllowed is the nearest difficulty that is given out, by ratio: mining/src/difficulty.rs.
func roundToAllowed(units uint64) uint64 {
	step := uint64(one)
	if units < one {
		step = 1 << max(61-bits.LeadingZeros64(units), 0)
	}
	below := units &^ (step - 1)
	above := below + step
	squareHigh, squareLow := bits.Mul64(units, units)
	productHigh, productLow := bits.Mul64(below, above)
	if squareHigh > productHigh || (squareHigh == productHigh && squareLow >= productLow) {
		return above
	}
	return below
}

// expectedMilli is how many thousandths of a share are wanted in this time.
func expectedMilli(elapsed uint64) uint64 {
	return elapsed * perMinute / 60_000_000
}

func since(time, earlier uint64) uint64 {
	return max(time, earlier) - earlier
}
