// Package freeport chooses ports for programs that are told one before they listen on it. Whatever can listen on port 0
// does that instead.
package freeport

import "math/rand/v2"

// The ports that are chosen from. They are below those that Linux gives to connections (ip_local_port_range, from 32768):
// a connection might take one of these before the program listens, and keep it.
const (
	first = 12000
	count = 20000
)

// Pick is a port by chance. Somebody may listen on it.
func Pick() int { return first + rand.IntN(count) }
