// Package pki is the trust of a cluster: its own certificate authority, the certificates that say who a
// program is, the mutual TLS built on them, their place on disk, and the joining of a new host.
//
// Who a program is stands in one URI of its certificate, demiurge://<cluster>/<role>/<name>, and nowhere
// else. No check looks at a host name, an address or the DNS: those are what an attacker on the network
// can change. Names come from the one who issues (a join token, a registered host) and never from the
// request for a certificate, of which only the public key is used.
//
// The parts, in the order in which a cluster meets them: Authority makes a root and issues certificates;
// Root and Bundle are the public half that everybody keeps, and carry a rotation; Credentials are what one
// program presents and accepts; Live gives them to TLS and replaces them while connections go on; Store
// keeps them on disk; JoinToken and Join bring a new host in.
package pki
