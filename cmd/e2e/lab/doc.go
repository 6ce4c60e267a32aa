// Package lab makes a small network of hosts on one machine, each a network namespace with an address of its
// own on a common bridge, runs the real programs on them, and breaks both on purpose. It needs root, ip and
// nft. Everything that it makes carries the id of the process that made it, and is removed by Close.
package lab
