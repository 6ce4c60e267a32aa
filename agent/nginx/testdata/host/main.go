// Command host runs an engine on a directory until it is killed, for the test that kills it for real.
// Arguments: data, run and socket directory, domain, listener, gateway, largest body.
package main

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"strconv"

	"github.com/demiurge-platform/demiurge/agent/nginx"
	"github.com/demiurge-platform/demiurge/shared/id"
)

func main() {
	a := os.Args
	body, err := strconv.ParseInt(a[7], 10, 64)
	if err != nil {
		panic(err)
	}
	e, err := nginx.Open(nginx.Options{
		DataDir: a[1], RunDir: a[2], SocketDir: a[3], Domain: a[4], Listen: []netip.AddrPort{netip.MustParseAddrPort(a[5])}, Workers: 2,
	})
	if err != nil {
		panic(err)
	}
	e.SetConfig(nginx.Config{Slots: []nginx.Slot{{Gateway: id.Gateway(a[6]), MaxBody: body}}})
	fmt.Println(e.Run(context.Background()))
}
