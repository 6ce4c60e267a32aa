package coordinator

import (
	"strings"
	"testing"

	"github.com/demiurge-platform/demiurge/coordinator/consensus"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/gossip"
)

func TestNoCoordinatorWithAFullDiskIsMadeLeader(t *testing.T) {
	peers := []consensus.Peer{{ID: "c1", Voter: true}, {ID: "c2", Voter: true}, {ID: "c3", Voter: true}, {ID: "c4"}}
	member := func(name string, low bool) gossip.Member {
		m := gossip.Member{Role: gossip.RoleCoordinator, Name: name, Status: gossip.StatusAlive, Tags: map[string]string{tagState: stateFit}}
		if low {
			m.Tags[tagLow] = "3"
		}
		return m
	}
	late := member("c3", false)
	late.Tags[tagState] = stateLag
	gone := member("c3", true)
	gone.Status = gossip.StatusFailed
	for name, tt := range map[string]struct {
		wanted  string
		members []gossip.Member
		next    string
		code    fault.Code
		says    string
	}{
		"any":                                {"", []gossip.Member{member("c2", false), member("c3", false)}, "", "", ""},
		"one by name":                        {"c3", []gossip.Member{member("c2", false), member("c3", false)}, "c3", "", ""},
		"one by name that the gossip misses": {"c3", nil, "c3", "", ""},
		"one that is full":                   {"c2", []gossip.Member{member("c2", true), member("c3", false)}, "", fault.Conflict, `the disk of coordinator "c2" is nearly full`},
		"any, and one is full":               {"", []gossip.Member{member("c2", true), member("c3", false)}, "c3", "", ""},
		"any, one is full and one behind":    {"", []gossip.Member{member("c2", true), late}, "", fault.Conflict, "every other coordinator"},
		"any, and all are full":              {"", []gossip.Member{member("c2", true), member("c3", true), member("c4", false)}, "", fault.Conflict, "every other coordinator"},
		"any, and a dead one was full":       {"", []gossip.Member{member("c2", false), gone}, "", "", ""},
		"any, and only the leader is full":   {"", []gossip.Member{member("c1", true), member("c2", false)}, "", "", ""},
		"nobody":                             {"c9", nil, "", fault.NotFound, "c9"},
		"one without vote":                   {"c4", nil, "", fault.Conflict, "no vote"},
	} {
		next, err := successor("c1", tt.wanted, peers, tt.members)
		if next != tt.next || (err == nil) != (tt.code == "") {
			t.Errorf("%s: %q, %v", name, next, err)
		}
		if err != nil && (fault.CodeOf(err) != tt.code || !strings.Contains(err.Error(), tt.says)) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
