package cowcommon

// OrUnknown returns value for Backend.Status, or the reason for which the value is unknown if err is not nil.
func OrUnknown(value string, err error) string {
	if err != nil {
		return "unknown: " + err.Error()
	}
	return value
}
