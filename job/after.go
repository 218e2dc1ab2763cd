package job

import (
	"errors"
	"fmt"
	"slices"
)

// MaxAfter is the maximum number of jobs in Record.After.
const MaxAfter = 100

// CheckAfter returns an error if after has more than MaxAfter ids, an id twice, or an
// invalid id.
func CheckAfter(after []ID) error {
	if len(after) > MaxAfter {
		return fmt.Errorf("there are %d jobs, at most %d can be waited for", len(after), MaxAfter)
	}
	for i, id := range after {
		if _, err := ParseID(string(id)); err != nil {
			return err
		}
		if slices.Contains(after[:i], id) {
			return fmt.Errorf("job `%s` is named twice", id)
		}
	}
	return nil
}

// CheckGroup returns an error if the name of a group is not empty and not valid as a job id.
func CheckGroup(group string) error {
	if group == "" {
		return nil
	}
	if _, err := ParseID(group); err != nil {
		return errors.Join(errors.New("a group is named as a job is"), err)
	}
	return nil
}
