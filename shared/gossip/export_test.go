package gossip

import "time"

// GiveUpNameAfter makes a node that has not joined yet give up a taken name after d.
func (n *Node) GiveUpNameAfter(d time.Duration) { n.timers.conflict = d }
