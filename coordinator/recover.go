package coordinator

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/demiurge-platform/demiurge/coordinator/consensus"
	"github.com/demiurge-platform/demiurge/coordinator/fsm"
	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/config"
)

// RecoverOptions are those of Recover.
type RecoverOptions struct {
	Path    string // of coordinator.yaml
	Environ []string
	// Yes: do it. Without it Recover says what it would do and returns ErrNotConfirmed.
	Yes    bool
	Out    io.Writer
	Logger hclog.Logger // nil: silent
	Now    func() time.Time
}

// ErrNotConfirmed says that nothing was changed because nobody said that it shall be.
var ErrNotConfirmed = errors.New("nothing was changed: run it again with --yes to do this")

// Recover makes a stopped coordinator a cluster of its own, with the data it has, after so many others were
// lost for good that there is no majority any more, or after the data directory of the only one was put back as it was
// at an earlier time. The hosts may know more than the data, as after the restore of a snapshot.
func Recover(o RecoverOptions) error {
	cfg := DefaultConfig()
	if _, err := config.Load(o.Path, cfg, o.Environ); err != nil {
		return err
	}
	if o.Logger == nil {
		o.Logger = hclog.NewNullLogger()
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	address := cfg.Raft.Advertise
	if address == "" {
		address = cfg.Raft.Listen
		if bound, err := netip.ParseAddrPort(address); err != nil || bound.Addr().IsUnspecified() || bound.Port() == 0 {
			return fmt.Errorf("cannot recover: other coordinators could not reach this one at %s; set raft.advertise in %s", address, o.Path)
		}
	}
	dir := filepath.Join(cfg.DataDir, "raft")
	backup := dir + ".before-recovery-" + o.Now().UTC().Format("20060102T150405Z")
	if err := consensus.Recoverable(dir, cfg.NodeID); err != nil {
		return err
	}
	if _, err := os.Lstat(backup); !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot recover: %s exists already: %w", backup, err)
	}
	fmt.Fprintf(o.Out, plan, cfg.NodeID, address, dir, backup, dir, cfg.NodeID)
	if !o.Yes {
		return ErrNotConfirmed
	}
	did, err := consensus.Recover(consensus.Options{
		NodeID: cfg.NodeID, Dir: dir, Advertise: address, FSM: fsm.New(state.New(), o.Logger), Logger: o.Logger,
		ConvertSnapshot: func(in io.Reader, out io.Writer) error {
			return fsm.Convert(in, out, o.Now().UTC(), func(string, *state.Trust) (*state.Trust, error) { return nil, nil }) // as it is
		},
	}, backup)
	if err != nil {
		return err
	}
	names := make([]string, len(did.Members))
	for i, m := range did.Members {
		names[i] = m.ID + " (" + m.Address + ")"
	}
	_, err = fmt.Fprintf(o.Out, "\nDone. The cluster was %s; it is %s alone now, with everything up to index %d (term %d).\nStart this coordinator, then add others.\n",
		strings.Join(names, ", "), cfg.NodeID, did.Index, did.Term)
	return err
}

// plan is what Recover says before it does it.
const plan = `This makes coordinator %s at %s a cluster of its own:

  1. copy %s
       to %s
  2. take everything in the log for decided, also what no majority had
  3. write it all as one snapshot with this coordinator as the only member, prepared for hosts that know more than it:
     indexes and epochs leap far ahead, and all free gateways are begun anew
  4. empty the log in %s

Changes that only the lost coordinators had are lost with them. Use the coordinator with the highest
last_index of those that are left. The lost ones must never be started again with their data: empty their
data directories first, and let them join %s as new ones, each with a join token.
`
