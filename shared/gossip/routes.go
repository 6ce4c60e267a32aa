package gossip

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"github.com/demiurge-platform/demiurge/shared/id"
)

// RouteDigest sums up routes, in whatever order they are added: hosts and coordinators compare theirs by it.
type RouteDigest uint64

// Add takes in one more route. The same route twice is none.
func (d *RouteDigest) Add(org id.Organization, gateway id.Gateway, epoch id.Epoch) {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %s %d", org, gateway, epoch))
	*d ^= RouteDigest(binary.BigEndian.Uint64(sum[:]))
}
