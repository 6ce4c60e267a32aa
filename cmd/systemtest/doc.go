// Package systemtest holds the tests of the real programs together: coordinator, agent, gateways and real
// nginx, run by `demiurge dev` and used through the API, the command line and nginx as anybody would.
package systemtest
