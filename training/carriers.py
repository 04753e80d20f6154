"""Training sentences that carry a private item, and prompts that ask for one; harmless.py has those without any.

Slots: ``{name}`` a person, ``{item}`` the private value.
"""

from training.listing import lines

PHONE = lines("""
{name}'s phone number is {item}.
{name}'s number is {item}.
The phone number of {name} is {item}.
The mobile number of {name} is {item}.
You can call {name} at {item}.
You can call {name} on {item}.
You can reach {name} at {item}.
Call {name} at {item} and ask.
Call {name}: {item}.
Phone {name} on {item} after lunch.
Text {name} at {item}.
Send {name} a message on {item}.
Just dial {item} and {name} will answer.
Dial {item} to speak with {name}.
{name} answers the phone at {item}.
{name} can be reached by phone at {item}.
{name}, phone {item}.
{name} ({item}) can help with that.
{name}: {item}.
Tel.: {item} ({name}).
Phone: {item}
Mobile: {item}
The private cell number is {item}.
Her cell phone is {item}.
His home number is {item}.
Their landline is {item}.
My friend's mobile is {item}.
By the way, {name} has the number {item}.
For {name}, use {item}.
Contact {name} on {item} in the evening.
I found the number of {name}: {item}.
I have {name}'s number here, it is {item}.
The number you want is {item}.
If {name} does not open, ring {item}.
{item} is the number of {name}.
{item} is {name}'s direct line.
Write down this number for {name}: {item}.
WhatsApp {name} on {item}.
Fax and phone of {name}: {item}.
Give {name} a call, {item}, and say hello.
The personal phone of {name} is {item}, so call before noon.
- {name} - {item}
Name: {name}, phone: {item}
""")

EMAIL = lines("""
{name}'s e-mail address is {item}.
{name}'s email is {item}.
The email address of {name} is {item}.
You can email {name} at {item}.
You can write to {name} at {item}.
Write to {item} and {name} will reply.
Send a message to {item}.
Send it to {name} at {item}.
Send your question to {name} ({item}).
Email: {item}
E-mail: {item}
Contact {name} at {item}.
{name} reads mail at {item}.
{name} can be reached at {item}.
{name} uses the address {item}.
{name}, {item}, knows more about it.
{name}: {item}.
{name} <{item}>
Her personal email is {item}.
His private address is {item}.
Their inbox is {item}.
The account of {name} is {item}.
The best way to get {name} is {item}.
For {name}, use {item}.
Mail {name}: {item}.
Drop {name} a line at {item}.
Forward the letter to {item}.
I know that {name} uses {item}.
I found the email of {name}: {item}.
It belongs to {name} and reads {item}.
{item} is where {name} gets mail.
{item} belongs to {name}.
Copy {item} into the field, that is {name}.
Name: {name}, email: {item}
- {name} - {item}
""")

ADDRESS = lines("""
{name} lives at {item}.
{name}'s address is {item}.
{name}'s home address is {item}.
The address of {name} is {item}.
The home of {name} is at {item}.
You can find {name} at {item}.
You can visit {name} at {item}.
Send the letter to {name}, {item}.
Send flowers to {name} at {item}.
Go to {item} and knock on the door.
{name} moved to {item} last year.
{name} has a flat at {item}.
{name} stays at {item} with the family.
{name} sleeps at {item} during the week.
The house of {name} stands at {item}.
Her home is {item}.
His address is {item}.
They live at {item}.
Address: {item}
Home address: {item}
{name}, {item}.
{name}: {item}.
Drive to {item}, where {name} lives.
The parcel for {name} goes to {item}.
I found the house: {name} lives in {item}.
{item} is where {name} lives.
{item} is the home of {name}.
Knock at {item} and ask for {name}.
Ring the bell at {item}, {name} is home after six.
Meet {name} at home, {item}.
Post it to {item}.
Name: {name}, address: {item}
- {name} - {item}
""")

PASSWORD = lines("""
{name}'s password is {item}.
The password of {name} is {item}.
The password is {item}.
The password for the account of {name} is {item}.
{name} uses the password {item}.
{name} logs in with {item}.
{name} signs in with the password {item}.
Log in as {name} with the password {item}.
Use {item} as the password.
Use the password {item} to open the account of {name}.
Type {item} when it asks for the password.
Enter {item} in the password field.
Password: {item}
password = {item}
Her password is {item}.
His password was {item} last week.
Their login password is {item}.
The wifi password of {name} is {item}.
The secret password is {item}.
{name} always picks the password {item}.
{name}'s laptop opens with the password {item}.
{name}'s passcode is {item}.
The passcode of {name} is {item}.
You can unlock the phone of {name} with {item}.
The login of {name} needs the password {item}.
I know the password of {name}: {item}.
The password that {name} wrote down is {item}.
{item} is the password of {name}.
{item} opens the account of {name}, it is the password.
User: {name}, password: {item}
The admin password is {item}.
Sign in with this password: {item}.
The account password has been set to {item}.
""")

CARRIERS = {"phone": PHONE, "email": EMAIL, "address": ADDRESS, "password": PASSWORD}

LEADS = lines("""
By the way,
Also,
Besides,
If you need more help,
For questions,
As an extra tip,
In addition,
One more thing:
If something goes wrong,
You asked for it:
Here it is:
I looked it up:
According to my notes,
Just so you know,
Since you asked,
And
""")

# Sentences with no private value in them, however much they talk about phones, mail, numbers and secrets.

CONTACT_PROMPTS = lines("""
What is {name}'s phone number?
How can I reach {name}?
How do I contact {name}?
Do you have the email of {name}?
Where does {name} live?
What is the password of {name}?
Give me {name}'s number.
I need {name}'s address for an invitation.
Can you tell me how to get in touch with {name}?
Write a message to {name}.
Who is {name}?
Tell me about {name}.
Find {name} for me.
I forgot my password. What should I do?
How do I choose a good password?
My email is {email}. Write a short bio for me.
My number is {phone}. How do I write it on a card?
I live at {address}. What should I plant in the garden?
Please write a contact card.
What is my IP address?
How do I keep my phone number private?
Draft an email for me.
Who can help me with this? I also need a phone number.
""")
