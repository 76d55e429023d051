package windows

// Ids of the events that the service leaves in the Application log, under its own name as source. They are for filters and
// alerts of operators, and stay what they are.
const (
	EventStarted   = 1 // the service runs
	EventStopped   = 2 // it was told to stop, and has
	EventTrouble   = 3 // a warning of the daemon, such as an agent that ends again and again
	EventFailed    = 4 // an error of the daemon, such as an agent that hangs and is replaced
	EventRefused   = 5 // others can change what would run as SYSTEM: the service does not run, or, registered by the original, does
	EventRemoved   = 6 // BK-CI deleted the agent: the service stays down
	EventNoSession = 7 // session mode: nobody is logged on, so the agent waits
)
