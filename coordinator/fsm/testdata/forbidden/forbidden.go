// Package forbidden does everything that the packages which apply commands may not do.
package forbidden

import (
	"maps"
	"math/rand"
	"slices"
	"time"

	"github.com/demiurge-platform/demiurge/coordinator/command"
)

func all(m command.Reserve, c chan int) (n int) {
	now := time.Now()
	go func() { c <- rand.Int() }()
	select {
	case n = <-c:
	default:
	}
	for range m.Metadata {
		n++
	}
	for range m.Metadata { // the order does not matter: it counts
		n++
	}
	for range slices.Sorted(maps.Keys(m.Metadata)) {
		n++
	}
	for range maps.Keys(m.Metadata) {
		n++
	}
	return n + now.Second()
}
