//go:build e2e

package e2e

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"time"
)

// clock is the wall clock of a host: a file with the seconds by which it is wrong.
type clock string

// set makes the clock wrong by so much.
func (c clock) set(by time.Duration) error {
	var seconds [8]byte
	binary.NativeEndian.PutUint64(seconds[:], uint64(by/time.Second))
	file, err := os.OpenFile(string(c), os.O_CREATE|os.O_WRONLY, 0o600) // not truncated: it is mapped
	if err != nil {
		return err
	}
	_, err = file.Write(seconds[:])
	return errors.Join(err, file.Close())
}

// steps are by how much a clock is set wrong. The checker knows them, and tells by them when something really was.
var steps = []time.Duration{-6 * time.Hour, -time.Hour, -20 * time.Minute, -5 * time.Minute, 5 * time.Minute, 20 * time.Minute, time.Hour, 6 * time.Hour}

// ahead is one step forward; what is before it, one back.
func ahead(rng *rand.Rand) time.Duration { return steps[len(steps)/2+rng.IntN(len(steps)/2)] }

// toAndFro steps a clock to and fro for some seconds.
func (n *nemesis) toAndFro(c clock) error {
	sign := time.Duration(1)
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end); sign = -sign {
		if err := c.set(sign * ahead(n.rng)); err != nil {
			return err
		}
		waitFor(n.c.ctx, time.Duration(100+n.rng.IntN(400))*time.Millisecond)
	}
	return nil
}
