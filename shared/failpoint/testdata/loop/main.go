// Command loop passes one failpoint three times.
package main

import (
	"fmt"

	"github.com/demiurge-platform/demiurge/shared/failpoint"
)

func main() {
	for i := range 3 {
		failpoint.Hit("loop.step")
		if err := failpoint.Fail("loop.step"); err != nil {
			fmt.Println(err)
			continue
		}
		fmt.Println(i)
	}
}
