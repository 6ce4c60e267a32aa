package process_test

import (
	"testing"

	"github.com/demiurge-platform/demiurge/agent/driver"
	"github.com/demiurge-platform/demiurge/agent/driver/drivertest"
	"github.com/demiurge-platform/demiurge/agent/driver/process"
)

func factory(runDir string) (driver.Driver, error) {
	return process.New(process.Options{RunDir: runDir})
}

func TestMain(m *testing.M) { drivertest.Main(m, factory) }

func TestSuite(t *testing.T) { drivertest.Run(t, factory) }

func TestO1_CleanExitAndCrashAreTold(t *testing.T) { drivertest.O1(t, factory) }

func TestO2_SIGTERMReachesTheGatewayAndItSaves(t *testing.T) { drivertest.O2(t, factory) }

func TestO6_LastWordsSurviveTheRestart(t *testing.T) { drivertest.O6(t, factory) }
