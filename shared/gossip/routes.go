package gossip

import (
	"crypto/sha256"
	"encoding/binary"
	"strconv"

	"github.com/demiurge-platform/demiurge/shared/id"
)

// RouteDigest sums up routes, in whatever order they are added: hosts and coordinators compare theirs by it.
type RouteDigest uint64

// Add takes in one more route. The same route twice is none.
func (d *RouteDigest) Add(org id.Organization, gateway id.Gateway, epoch id.Epoch) {
	text := make([]byte, 0, 128) // no object: a status adds the routes of all hosts
	text = append(append(text, org...), ' ')
	text = append(append(text, gateway...), ' ')
	sum := sha256.Sum256(strconv.AppendUint(text, uint64(epoch), 10))
	*d ^= RouteDigest(binary.BigEndian.Uint64(sum[:]))
}
