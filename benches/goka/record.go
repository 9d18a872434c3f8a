package main

import (
	"encoding/binary"
	"errors"
)

// Numbers of the fields that are read: proto/sluice/v1/sluice.proto.
const (
	fieldTime       = 2
	fieldVerdict    = 10
	fieldReason     = 1
	fieldSession    = 2
	fieldJob        = 5
	fieldDifficulty = 7
	fieldHash       = 10
	fieldLiveFrom   = 14
	reasonDuplicate = 4
)

var errMalformed = errors.New("not a verdict of Sluice")

// share is what the rules need of a record.
type share struct {
	time, session, job, difficulty, liveFrom uint64
	// The first 8 bytes of the header's hash. They are random, and the chance that two of a session's few are the same is none.
	hash uint64
	// Where the reason stands in the record, a byte.
	reasonAt int
}

// parse reads a verdict in its envelope, in place.
func parse(record []byte) (share, error) {
	var found share
	verdict, at := []byte(nil), 0
	for rest := record; len(rest) > 0; {
		field, word, part, next, ok := next(rest)
		if !ok {
			return found, errMalformed
		}
		switch field {
		case fieldTime:
			found.time = word
		case fieldVerdict:
			verdict, at = part, len(record)-len(next)-len(part)
		}
		rest = next
	}
	for rest := verdict; len(rest) > 0; {
		field, word, part, next, ok := next(rest)
		if !ok {
			return found, errMalformed
		}
		switch field {
		case fieldReason:
			found.reasonAt = at + len(verdict) - len(next) - 1
		case fieldSession:
			found.session = word
		case fieldJob:
			found.job = word
		case fieldDifficulty:
			found.difficulty = word
		case fieldHash:
			if len(part) != 32 {
				return found, errMalformed
			}
			found.hash = binary.BigEndian.Uint64(part)
		case fieldLiveFrom:
			found.liveFrom = word
		}
		rest = next
	}
	if found.reasonAt == 0 {
		return found, errMalformed
	}
	return found, nil
}

// next reads a field of Protobuf: its number, a number or a part, and what follows.
func next(from []byte) (field uint64, word uint64, part, rest []byte, ok bool) {
	tag, size := binary.Uvarint(from)
	if size <= 0 {
		return
	}
	field, rest = tag>>3, from[size:]
	switch tag & 7 {
	case 0:
		word, size = binary.Uvarint(rest)
		ok = size > 0
	case 1:
		if size, ok = 8, len(rest) >= 8; ok {
			word = binary.LittleEndian.Uint64(rest)
		}
	case 2:
		word, size = binary.Uvarint(rest)
		if ok = size > 0 && uint64(len(rest)-size) >= word; ok {
			part = rest[size : size+int(word)]
			size += int(word)
		}
	case 5:
		if size, ok = 4, len(rest) >= 4; ok {
			word = uint64(binary.LittleEndian.Uint32(rest))
		}
	}
	if ok {
		rest = rest[size:]
	}
	return
}

// asDuplicate is the record with another reason.
func (s *share) asDuplicate(record []byte) []byte {
	copied := append([]byte(nil), record...)
	copied[s.reasonAt] = reasonDuplicate
	return copied
}
